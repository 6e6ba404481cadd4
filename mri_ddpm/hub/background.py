"""Push in the background of a training."""

import math
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from diffusers.utils.logging import disable_progress_bar
from huggingface_hub.utils import disable_progress_bars

from mri_ddpm.errors import InputError
from mri_ddpm.hub.export import export_repository
from mri_ddpm.hub.push import HubUnreachable, Pushed, prepare_repository, push_folder, push_run
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.runs.record import copy_record

# From one push to the next: a fast training has a checkpoint a minute, with all of its weights
SECONDS_BETWEEN = 600.0


class BackgroundPush:
    """Pushes a run at its checkpoints from a thread of its own, one push at a time, and never stops the run.

    Args:
        run_dir: the run folder.
        repo_id: ``owner/name``, or a name alone for the user's own.
        public: make a new repository public.
        license: licence of the weights, for the model card.
        say: how a line reaches the user while a progress bar is up.

    Raises:
        InputError: when the Hub refuses the token or the name, which a person should know before the long work starts.
    """

    def __init__(
        self, run_dir: Path, repo_id: str, public: bool, license: str | None, say: Callable[[str], None]
    ):
        self.run_dir, self.repo_id, self.public, self.license = run_dir, repo_id, public, license
        self.say = say
        self.thread: threading.Thread | None = None
        self.begun = -math.inf  # the last push, in seconds
        disable_progress_bar()  # those of loading and uploading, which would break into the training's own
        disable_progress_bars()
        try:
            self.repo_id = prepare_repository(repo_id, public=public, tries=1)
        except HubUnreachable as error:
            say(f"warning: {error} Training starts all the same, and pushes when the Hub is back.")

    def start(self, step: int, pipeline: MRIDDPMPipeline) -> None:
        """Push what the run has now, of which ``pipeline`` is the open one; returns as soon as the files are copied.

        Where a push is still under way, or was begun less than ``SECONDS_BETWEEN`` ago, this step goes along with the next.
        """
        if time.monotonic() - self.begun < SECONDS_BETWEEN:
            return
        if self.thread and self.thread.is_alive():
            self.say(f"step {step}: the push before is still under way; this step goes along with the next.")
            return
        # It removes itself when the program ends, too, where the thread is not waited for
        folder = tempfile.TemporaryDirectory(prefix="mri-ddpm-", ignore_cleanup_errors=True)
        try:
            copy_record(self.run_dir, Path(folder.name, "run"))
        except OSError as error:
            self.say(f"warning: step {step} was not pushed: {error}")
            folder.cleanup()
            return
        self.begun = time.monotonic()
        self.thread = threading.Thread(target=self.push, args=(folder, step, pipeline), daemon=True)
        self.thread.start()

    def push(self, folder: tempfile.TemporaryDirectory, step: int, pipeline: MRIDDPMPipeline) -> None:
        """The thread's work: export and push a copy and remove it, saying how it went."""
        run, repository = Path(folder.name, "run"), Path(folder.name, "repository")
        try:
            repo_id = prepare_repository(self.repo_id, public=self.public)
            export_repository(run, repository, repo_id, self.license, pipeline)
            pushed = push_folder(repository, repo_id, f"Step {step}")
            self.say(f"step {step}: pushed {pushed.sent_bytes / 1e6:.1f} MB to {pushed.url}")
        except (InputError, OSError) as error:
            self.say(f"warning: step {step} was not pushed: {error}")
        finally:
            folder.cleanup()

    def finish(self, step: int) -> Pushed:
        """Wait for the push under way, then push the finished run.

        Raises:
            InputError: when the Hub does not take it; the sentence says how to send it later.
        """
        if self.thread:
            self.thread.join()
        try:
            return push_run(
                self.run_dir,
                self.repo_id,
                public=self.public,
                license=self.license,
                message=f"Trained to step {step}",
            )
        except InputError as error:
            raise InputError(
                f"the run in {self.run_dir} is whole, but was not pushed: {error} Send it later with "
                f"'mri-ddpm push {self.run_dir} {self.repo_id}'."
            ) from error
