"""Push an exported repository in one commit, tried again when the Hub stumbles."""

import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session

from mri_ddpm.errors import InputError
from mri_ddpm.hub.export import export_repository
from mri_ddpm.hub.space import export_space
from mri_ddpm.runs.faults import hub_sentence, is_transient, retry_after_seconds
from mri_ddpm.runs.folder import RunFolder
from mri_ddpm.runs.record import PAPERS, papers_that_travel

MOST_NAMED = 30  # files, where it is said what was sent; a Space has more, and they are always the same
TRIES = 4
FIRST_WAIT_SECONDS = 2.0  # doubled with every try, unless the Hub says how long
LONGEST_WAIT_SECONDS = 300.0  # whatever the Hub says; it counts requests in windows of five minutes
SILENCE_SECONDS = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", 60))  # the client waits for ever of itself
# By which a repository of ours is known, of each type
CODE_FILES = {"model": "pipeline_mri_ddpm.py", "space": "mri_ddpm/demo/serving.py"}
REPOSITORIES = {"model": "repository", "space": "Space"}
# What one export writes and another may not: left behind, it would be another model's, or another version's
PARTS = {
    "model": [
        "unet/diffusion_pytorch_model*.safetensors",
        *(path.as_posix() for path in papers_that_travel(RunFolder(Path(PAPERS)))),
    ],
    "space": ["mri_ddpm/*", "mri_ddpm-*.dist-info/*"],
}
Result = TypeVar("Result")


class HubUnreachable(InputError):
    """The Hub was not reached or is overloaded; the same call may succeed later."""


@dataclass(frozen=True)
class Pushed:
    """What a push did: the files sent and removed in its commit, those that were there already, and where it is; its Space, too."""

    repo_id: str
    url: str
    sent: list[str]
    sent_bytes: int
    unchanged: list[str]
    removed: list[str]
    space: "Pushed | None" = None

    def __str__(self):
        names = ", ".join(self.sent) if len(self.sent) <= MOST_NAMED else f"{len(self.sent)} files"
        sent = f"{self.sent_bytes / 1e6:.1f} MB ({names})" if self.sent else "nothing"
        removed = f"removed {', '.join(self.removed)}; " if self.removed else ""
        line = f"Pushed to {self.url}: sent {sent}; {removed}unchanged: {len(self.unchanged)} files."
        return f"{line}\n{self.space}" if self.space else line


def push_run(
    source: Path,
    repo_id: str,
    *,
    public: bool = False,
    license: str | None = None,
    message: str = "",
    space_id: str | None = None,
) -> Pushed:
    """Export a run or a pipeline and push it; see ``export_repository`` and ``push_folder``.

    Args:
        source: run folder, or a saved pipeline.
        repo_id: ``owner/name``, or a name alone for the user's own.
        public: make a new repository public, and its Space.
        license: licence of the weights, for the model card.
        message: of the commit.
        space_id: a Space to push as well, with the model's page (``export_space``); the model card names it.

    Raises:
        InputError: when there is nothing to push, or the Hub does not take it; nothing on disk has changed then.
    """
    repo_id, space_id = whole_name(repo_id), space_id and whole_name(space_id)
    with tempfile.TemporaryDirectory(prefix="mri-ddpm-") as folder:
        model, space = Path(folder) / "model", Path(folder) / "space"
        # before the network: a bad source costs no wait
        export_repository(source, model, repo_id, license, space_id=space_id)
        if space_id:
            export_space(space, space_id, repo_id)
            prepare_repository(space_id, public=public, repo_type="space")
        pushed = push_folder(model, prepare_repository(repo_id, public=public), message)
        if space_id:
            done = push_folder(space, space_id, message or "Push a Space of mri-ddpm", repo_type="space")
            pushed = dataclasses.replace(pushed, space=done)
        return pushed


def whole_name(repo_id: str) -> str:
    """``owner/name``; a name alone is the user's own.

    Raises:
        InputError: when the Hub does not know the user.
    """
    if "/" in repo_id:
        return repo_id
    return try_again(lambda api: f"{api.whoami()['name']}/{repo_id}", repo_id)


def prepare_repository(
    repo_id: str, *, public: bool = False, tries: int = TRIES, repo_type: str = "model"
) -> str:
    """Make the repository, private unless ``public``, or see that the one of that name may be written over.

    Returns:
        The whole name, ``owner/name``.

    Raises:
        InputError: when the token is wrong or missing, the name is somebody else's or holds another kind of model, or a
            public repository would get what nobody called public.
        HubUnreachable: when the Hub does not answer.
    """
    code_file = CODE_FILES[repo_type]
    of_type = {"repo_type": repo_type} | ({"space_sdk": "gradio"} if repo_type == "space" else {})

    def prepare(api: HfApi) -> str:
        name = api.create_repo(repo_id, private=not public, exist_ok=True, **of_type).repo_id
        info = api.repo_info(name, repo_type=repo_type)
        files = {file.rfilename for file in info.siblings}
        if code_file not in files and files - {".gitattributes", "README.md"}:
            raise InputError(
                f"the name {name} is taken: that {REPOSITORIES[repo_type]} holds something else ({len(files)} files, no "
                f"{code_file}); take another."
            )
        if not public and not info.private:
            raise InputError(
                f"the {REPOSITORIES[repo_type]} {name} is public on the Hub; say --hub_public to push there, or take another name."
            )
        if public and info.private:
            api.update_repo_settings(name, private=False, repo_type=repo_type)
        return name

    return try_again(prepare, repo_id, tries)


def push_folder(folder: Path, repo_id: str, message: str = "", *, repo_type: str = "model") -> Pushed:
    """Send a folder in one commit, which also removes what an earlier push sent and this one lacks.

    The client leaves out the files that are there already. Files that were never ours stay where they are.

    Raises:
        InputError: when the Hub does not take it; the sentence says why.
    """
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    found = []  # before each try: after a commit whose answer was lost, the next try finds its files

    def commit(api: HfApi) -> dict[str, str]:
        found.append(content_hashes(api, repo_id, repo_type))
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        operations += [
            CommitOperationDelete(name)
            for name in found[-1]
            if name not in files and is_ours(name, repo_type)
        ]
        # Not upload_folder: with Xet it makes several commits, and makes one again whose answer was lost
        message_there = message or "Push a model of mri-ddpm"
        done = api.create_commit(repo_id, operations, commit_message=message_there, repo_type=repo_type)
        return content_hashes(api, repo_id, repo_type, done.oid)

    try:
        after = try_again(commit, repo_id)
    except InputError as error:
        raise InputError(f"{error} A push is there whole or not at all, and nothing is lost here.") from error
    before = found[0]
    sent = [name for name in files if before.get(name) != after[name]]
    return Pushed(
        repo_id,
        f"{HfApi().endpoint}/{'spaces/' * (repo_type == 'space')}{repo_id}",
        sent,
        sum(files[name].stat().st_size for name in sent),
        [name for name in files if name not in sent],
        sorted(name for name in before.keys() - after.keys() if is_ours(name, repo_type)),
    )


def content_hashes(api: HfApi, repo_id: str, repo_type: str, revision: str | None = None) -> dict[str, str]:
    """The files of a repository by name, each with git's hash of what is in it."""
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    return {entry.path: entry.blob_id for entry in entries if isinstance(entry, RepoFile)}


def is_ours(name: str, repo_type: str) -> bool:
    """Whether a push wrote the file, if it is none of those that every push writes."""
    return any(fnmatch(name, pattern) for pattern in PARTS[repo_type])


def try_again(call: Callable[[HfApi], Result], repo_id: str, tries: int = TRIES) -> Result:
    """Call, and call again after a wait when the Hub was not reached or is overloaded.

    Raises:
        HubUnreachable: when it failed so ``tries`` times.
        InputError: when the Hub refuses for good.
    """
    wait = FIRST_WAIT_SECONDS
    with patient_client():
        for left in range(tries - 1, -1, -1):
            try:
                return call(HfApi())
            except InputError:
                raise
            except Exception as error:  # of several HTTP libraries, by the version of the client
                sentence = hub_sentence(error, repo_id)
                if not is_transient(error):
                    raise InputError(sentence) from error
                if not left:
                    raise HubUnreachable(f"{sentence[:-1]} (tried {tries} times).") from error
                asked = retry_after_seconds(error)
                time.sleep(min(wait if asked is None else asked, LONGEST_WAIT_SECONDS))
                wait *= 2
    raise AssertionError("unreachable: the last try returns or raises")


@contextmanager
def patient_client() -> Iterator[None]:
    """Keep the client from waiting for ever, and from printing its requests, whose URLs may be signed."""
    session = get_session()
    if hasattr(session, "timeout"):  # httpx, of huggingface_hub 1 and later
        hooks = {"event_hooks": session.event_hooks, "follow_redirects": True}
        huggingface_hub.set_client_factory(lambda: type(session)(timeout=SILENCE_SECONDS, **hooks))
    else:
        huggingface_hub.configure_http_backend(lambda: with_timeout(session))
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def with_timeout(session):
    """A session of requests like another, whose every call gives up after ``SILENCE_SECONDS`` of silence."""
    new = type(session)()
    new.adapters = session.adapters
    send = new.send
    new.send = lambda request, **kwargs: send(
        request, **{**kwargs, "timeout": kwargs.get("timeout") or SILENCE_SECONDS}
    )
    return new
