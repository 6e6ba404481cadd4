"""A Hugging Face Hub on loopback, in memory: the HTTP API ``huggingface_hub`` speaks, with faults to order.

``HF_ENDPOINT``, which is read when ``huggingface_hub`` is imported, leads the client here. Big and binary
files travel by the LFS protocol, so a client that prefers Xet needs ``HF_HUB_DISABLE_XET=1`` as well.
"""

import base64
import hashlib
import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

# In two pieces, so that nothing that scans a repository for leaked tokens takes it for one.
TOKEN = "hf_" + "NotARealTokenItIsOnlyForTheseTests"

ROUTES = []  # method, pattern of the path, handler; a handler's name is its endpoint's
REPO = r"/(?P<repo_id>(?:spaces/)?[^/]+(?:/[^/]+)?)"  # a Space's begins with "spaces/", as its address does
MODEL = rf"/api/models{REPO}"
REVISION = r"/(?P<revision>[^/]+)"


def route(method: str, pattern: str):
    def keep(handler):
        ROUTES.append((method, pattern, handler))
        return handler

    return keep


@dataclass
class Request:
    """What a client asked."""

    endpoint: str
    authorized: bool
    bytes_received: int = 0


@dataclass
class Answer(Exception):
    """What goes back to the client: a handler returns it, or raises it to refuse."""

    body: bytes | dict | list = b""
    status: int = 200
    headers: dict = field(default_factory=dict)


def refusal(status: int, message: str, code: str = "", headers: dict | None = None, **body) -> Answer:
    """An error as the Hub puts it: in headers, by which the client goes, and again in the body."""
    reasons = {"X-Error-Message": message, "X-Error-Code": code, **(headers or {})}
    return Answer({"error": message, **body}, status, reasons)


@dataclass
class Fault:
    """What the next ``times`` requests to an endpoint (``"*"``: to any) get in place of an answer.

    A ``status``; or the connection is closed: after ``hang_seconds``, once ``cut_after_bytes`` of the request's
    body have come, or, with ``answer_lost``, after the request was carried out.
    """

    where: str = ""
    status: int | None = None
    times: int = 1
    headers: dict | None = None
    message: str = ""
    hang_seconds: float = 0
    cut_after_bytes: int = sys.maxsize
    answer_lost: bool = False

    @property
    def closes(self) -> bool:
        return self.hang_seconds > 0 or self.cut_after_bytes < sys.maxsize


NO_FAULT = Fault()


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A repository of a model or a Space with one branch, ``main``: its commits, oldest first."""

    private: bool = False
    commits: list[Commit] = field(default_factory=list, init=False)

    def __post_init__(self):
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.commit("initial commit", {".gitattributes": attributes})

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        self.commits.append(Commit(secrets.token_hex(20), message, files))
        return self.commits[-1].sha

    def find(self, revision: str) -> Commit:
        """The newest commit of ``main``, or the one with this full sha."""
        for commit in reversed(self.commits):
            if revision in ("main", commit.sha):
                return commit
        raise refusal(404, f"Invalid rev id: {quote(revision)}", "RevisionNotFound")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return dict(self.find(revision).files)


class HubServer:
    """The server, from its making to the end of the process. Its handlers run one at a time."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Connection)
        server.hub = self
        server.handle_error = lambda *_: None  # quiet about a client that closed its connection
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"

    def reset(self) -> None:
        """Forget everything, as if newly started."""
        with self.lock:
            for memory in (self.repositories, self.requests, self.objects, self.faults):
                memory.clear()

    def fail(self, where: str, **fault) -> None:
        """Let requests to an endpoint fail; ``Fault`` says how they can."""
        if where not in {"*", *(handler.__name__ for _, _, handler in ROUTES)}:
            raise ValueError(f"no endpoint is called {where}")
        self.faults.append(Fault(where, **fault))

    def edit(self, repo_id: str, path: str, content: bytes | None) -> None:
        """Commit as somebody else: add or replace a file of any name, or delete it (``None``)."""
        with self.lock:
            files = self.repositories[repo_id].files()
            if content is None:
                del files[path]
            else:
                files[path] = self.objects[sha256(content)] = content
            self.repositories[repo_id].commit("Edited by somebody else", files)

    def open(self, request: Request, repo_id: str) -> Repository:
        repository = self.repositories.get(repo_id)
        if repository is None or (repository.private and not request.authorized):
            raise refusal(401 if repository else 404, "Repository not found", "RepoNotFound")
        return repository

    @route("GET", r"/api/whoami-v2")
    def whoami(self, request: Request, _) -> Answer:
        return Answer({"type": "user", "name": "me"})

    @route("POST", r"/api/repos/create")
    def create(self, request: Request, body: bytes) -> Answer:
        wanted = json.loads(body)
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if not repo_id.startswith("me/"):
            raise refusal(403, "You don't have the rights to create a model under this namespace")
        place = {"url": f"{self.url}/{repo_id}", "name": repo_id}
        if wanted.get("type") == "space":
            if not wanted.get("sdk"):
                raise refusal(400, "A Space needs an sdk")
            repo_id = f"spaces/{repo_id}"
            place["url"] = f"{self.url}/{repo_id}"
        if repo_id in self.repositories:
            raise refusal(409, "You already created this model repo", **place)
        self.repositories[repo_id] = Repository(wants_private(wanted))
        return Answer(place)

    @route("PUT", rf"{MODEL}/settings")
    def settings(self, request: Request, body: bytes, repo_id: str) -> Answer:
        repository = self.open(request, repo_id)
        repository.private = wants_private(json.loads(body))
        return Answer({"private": repository.private})

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self, request: Request, _) -> Answer:
        return Answer({"errors": [], "warnings": []})

    @route("GET", rf"{MODEL}(?:/revision{REVISION})?")
    def info(self, request: Request, _, repo_id: str, revision: str) -> Answer:
        repository = self.open(request, repo_id)
        commit = repository.find(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        return Answer(
            {
                "id": repo_id.removeprefix("spaces/"),
                "private": repository.private,
                "sha": commit.sha,
                "siblings": siblings,
            }
        )

    @route("GET", rf"{MODEL}/tree{REVISION}")
    def tree(self, request: Request, _, repo_id: str, revision: str) -> Answer:
        files = self.open(request, repo_id).files(revision)
        entries = [{"path": name, "size": len(files[name]), "oid": git_oid(files[name])} for name in files]
        return Answer([{"type": "file", **entry} for entry in entries])

    @route("POST", rf"{MODEL}/preupload{REVISION}")
    def preupload(self, request: Request, body: bytes, repo_id: str, revision: str) -> Answer:
        """Say how each file is to come, and what stands there: the client leaves out what has not changed."""
        there = self.open(request, repo_id).files(revision)
        modes = []
        for file in json.loads(body)["files"]:
            path, lfs = file["path"], is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
            oid = (sha256 if lfs else git_oid)(there[path]) if path in there else None
            mode = "lfs" if lfs else "regular"
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Answer({"files": modes})

    @route("POST", rf"{REPO}\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, body: bytes, repo_id: str) -> Answer:
        self.open(request, repo_id)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(body)["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self.objects:
                url = f"{self.url}/objects/{wanted['oid']}?X-Amz-Signature={secrets.token_hex(32)}"
                wanted["actions"] = {"upload": {"href": url}}
        return Answer({"transfer": "basic", "objects": objects})

    @route("PUT", r"/objects/(?P<oid>[0-9a-f]{64})")
    def lfs_upload(self, request: Request, body: bytes, oid: str) -> Answer:
        if sha256(body) != oid:
            raise refusal(400, "XAmzContentSHA256Mismatch")
        self.objects[oid] = body
        return Answer()

    @route("POST", rf"{MODEL}/commit/main")
    def commit(self, request: Request, body: bytes, repo_id: str) -> Answer:
        repository = self.open(request, repo_id)
        files = repository.files()
        header, *operations = (json.loads(line) for line in body.splitlines())
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif files.pop(value["path"], None) is None:  # deletedFile
                raise refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        sha = repository.commit(header["value"]["summary"], files)
        return Answer({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo_id}/commit/{sha}"})

    @route("GET", rf"{REPO}/resolve{REVISION}/(?P<path>.+)")
    def resolve(self, request: Request, _, repo_id: str, revision: str, path: str) -> Answer:
        commit = self.open(request, repo_id).find(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise refusal(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{sha256(commit.files[path])}"'
        return Answer(commit.files[path], headers=headers)

    def unknown(self, request: Request, _) -> Answer:
        raise refusal(404, "Sorry, we can't find the page you are looking for.")


def wants_private(wanted: dict) -> bool:
    """What a request says about privacy: newer clients send ``visibility``, older ones ``private``."""
    return wanted.get("visibility") == "private" or wanted.get("private", False)


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file becomes an LFS object: weights, and what is big or binary; never an empty file."""
    return size > 0 and (path.endswith(".safetensors") or size > 10 * 2**20 or b"\0" in sample[:512])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Connection(BaseHTTPRequestHandler):
    """One connection, over which many requests may come."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else answers wait 40 ms between their headers and their body

    def log_message(self, *_):
        pass

    def respond(self) -> None:
        hub, handler, arguments = self.server.hub, HubServer.unknown, {}
        for method, pattern, candidate in ROUTES:
            # A Space is found as a model is, by its longer name
            path = urlsplit(self.path).path.replace("/api/spaces/", "/api/models/spaces/", 1)
            found = re.fullmatch(pattern, path)
            if found and method == self.command.replace("HEAD", "GET"):
                handler = candidate
                arguments = {name: unquote(text or "") for name, text in found.groupdict().items()}
                break
        request = Request(handler.__name__, self.headers.get("Authorization") == f"Bearer {TOKEN}")
        with hub.lock:
            hub.requests.append(request)
            waiting = (f for f in hub.faults if f.times > 0 and f.where in (request.endpoint, "*"))
            fault = next(waiting, NO_FAULT)
            fault.times -= 1
        try:
            body = self.receive(request, fault.cut_after_bytes)
            time.sleep(fault.hang_seconds)
            if fault.closes:
                raise ConnectionAbortedError
            if fault.status:
                answer = refusal(fault.status, fault.message, headers=fault.headers)
            else:
                answer = self.answer(request, lambda: handler(hub, request, body, **arguments))
            if fault.answer_lost:
                raise ConnectionAbortedError
        except ConnectionError:  # the client went away, or the fault is that we do
            self.close_connection = True
        else:
            self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def answer(self, request: Request, handle: Callable[[], Answer]) -> Answer:
        try:
            if "Authorization" in self.headers and not request.authorized:
                raise refusal(401, "Invalid credentials in Authorization header")
            if self.command == "POST" and not request.authorized:
                raise refusal(401, "Invalid username or password.")
            with self.server.hub.lock:
                return handle()
        except Answer as refused:
            return refused
        except (LookupError, TypeError, ValueError) as error:  # else it would look like a lost connection
            return Answer({"error": repr(error)}, 500)

    def receive(self, request: Request, limit: int) -> bytes:
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(min(size, limit))
        request.bytes_received = len(body)
        if len(body) < size:
            raise ConnectionAbortedError
        return body

    def send(self, answer: Answer) -> None:
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Length": len(content), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
