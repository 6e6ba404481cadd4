"""A Hugging Face Hub on loopback, in memory: the HTTP API ``huggingface_hub`` speaks, with faults to order.

``HF_ENDPOINT``, which is read when ``huggingface_hub`` is imported, leads the client here. Big and binary
files travel by the LFS protocol, so a client that prefers Xet needs ``HF_HUB_DISABLE_XET=1`` as well.
"""

import base64
import contextlib
import hashlib
import json
import re
import secrets
import socket
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

# In two pieces, so that nothing that scans a repository for leaked tokens takes it for one.
TOKEN = "hf_" + "NotARealTokenItIsOnlyForTheseTests"


@dataclass
class Request:
    """What a client asked; ``status`` is ``None`` as long as it got no answer."""

    method: str
    path: str  # as it was sent, without the query
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    endpoint: str
    status: int | None = None
    bytes_received: int = 0

    @property
    def authorized(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"


class Answer(Exception):
    """What goes back to the client: a handler returns it, or raises it to refuse."""

    def __init__(self, body: bytes | dict | list = b"", status: int = 200, headers: dict | None = None):
        self.body, self.status, self.headers = body, status, headers or {}


def refusal(status: int, message: str, code: str = "", headers: dict | None = None, **body) -> Answer:
    """An error as the Hub puts it: in headers, by which the client goes, and again in the body."""
    reasons = {"X-Error-Message": message, "X-Error-Code": code, **(headers or {})}
    return Answer({"error": message, **body}, status, {name: text for name, text in reasons.items() if text})


@dataclass
class Fault:
    """What the next ``times`` requests to an endpoint (``"*"``: to any) get in place of an answer.

    A ``status``; or nothing for ``hang_seconds``, and then the connection is closed; or it is closed once
    ``cut_after_bytes`` of the request's body have come.
    """

    where: str
    status: int | None = None
    times: int = 1
    headers: dict | None = None
    message: str = ""
    hang_seconds: float | None = None
    cut_after_bytes: int | None = None


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A model repository; the commits of all its branches stand in one list, oldest first."""

    private: bool = False
    commits: list[Commit] = field(default_factory=list, init=False)
    branches: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self):
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.commit("main", "initial commit", {".gitattributes": attributes})

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> str:
        self.branches[branch] = secrets.token_hex(20)
        self.commits.append(Commit(self.branches[branch], message, files))
        return self.branches[branch]

    def find(self, revision: str) -> Commit:
        """The commit that a branch stands at, or the one with this full sha."""
        for commit in self.commits:
            if commit.sha == self.branches.get(revision, revision):
                return commit
        raise refusal(404, f"Invalid rev id: {quote(revision)}", "RevisionNotFound")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return dict(self.find(revision).files)


class HubServer(contextlib.AbstractContextManager):
    """The server, a context manager. Its handlers run one at a time, however many requests come at once."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self._objects: dict[str, bytes] = {}  # of LFS, by sha256
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._closed = threading.Event()
        # Two, because the Hub keeps LFS objects on another host, which is not to be sent the token.
        self._ports = [_Port(self), _Port(self)]
        self.url, self._storage_url = (f"http://127.0.0.1:{port.server_port}" for port in self._ports)

    def __exit__(self, *_):
        self._closed.set()
        for port in self._ports:
            port.close()

    def reset(self) -> None:
        """Forget everything, as if newly started."""
        with self._lock:
            for memory in (self.repositories, self.requests, self._objects, self._faults):
                memory.clear()

    def fail(self, where: str, **fault) -> None:
        """Let requests to an endpoint fail; ``Fault`` says how they can."""
        if where not in {"*", *(endpoint for _, _, endpoint, _ in ROUTES)}:
            raise ValueError(f"no endpoint is called {where}")
        with self._lock:
            self._faults.append(Fault(where, **fault))

    def edit(self, repo_id: str, path: str, content: bytes | None) -> str:
        """Commit to ``main`` as somebody else: add or replace a file of any name, or delete it (``None``)."""
        with self._lock:
            files = self.repositories[repo_id].files()
            if content is None:
                del files[path]
            else:
                files[path] = self._objects[_sha256(content)] = content
            return self.repositories[repo_id].commit("main", "Edited by somebody else", files)

    def arrive(self, request: Request) -> Fault | None:
        """Note a request, and find the fault that waits for it."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.where in (request.endpoint, "*") and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def answer(self, request: Request, body: bytes, fault: Fault | None, handler, arguments: dict) -> Answer:
        try:
            if fault:
                self._closed.wait(fault.hang_seconds or 0)
                if fault.status is None:
                    raise ConnectionAbortedError
                raise refusal(fault.status, fault.message, headers=fault.headers)
            if "authorization" in request.headers and not request.authorized:
                raise refusal(401, "Invalid credentials in Authorization header")
            with self._lock:
                return handler(self, request, body, **arguments)
        except Answer as refused:
            return refused
        except (LookupError, TypeError, ValueError) as error:  # else it would look like a lost connection
            return Answer({"error": repr(error)}, 500)

    def _need_token(self, request: Request) -> None:
        if not request.authorized:
            raise refusal(401, "Invalid username or password.")

    def _open(self, request: Request, repo_id: str) -> Repository:
        """The repository, if this request may read it, or write it unless it is a ``GET`` or a ``HEAD``."""
        repository, mine = self.repositories.get(repo_id), repo_id.startswith("me/")
        writes = request.method not in ("GET", "HEAD")
        if writes:
            self._need_token(request)
        if repository is None or (repository.private and not (mine and request.authorized)):
            status = 401 if repository and not request.authorized else 404
            raise refusal(status, "Repository not found", "RepoNotFound")
        if writes and not mine:
            raise refusal(403, "pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    def whoami(self, request: Request, _) -> Answer:
        self._need_token(request)
        access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        return Answer({"type": "user", "name": "me", "fullname": "Me", "orgs": [], "auth": access})

    def create(self, request: Request, body: bytes) -> Answer:
        self._need_token(request)
        wanted = json.loads(body)
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if not repo_id.startswith("me/"):
            raise refusal(403, "You don't have the rights to create a model under this namespace")
        url = f"{self.url}/{repo_id}"
        if repo_id in self.repositories:
            raise refusal(409, "You already created this model repo", url=url)
        self.repositories[repo_id] = Repository(_wants_private(wanted, otherwise=False))
        return Answer({"url": url, "name": repo_id})

    def settings(self, request: Request, body: bytes, repo_id: str) -> Answer:
        repository = self._open(request, repo_id)
        repository.private = _wants_private(json.loads(body), otherwise=repository.private)
        return Answer({"private": repository.private})

    def branch(self, request: Request, body: bytes, repo_id: str, revision: str) -> Answer:
        repository = self._open(request, repo_id)
        if revision in repository.branches:
            raise refusal(409, "Reference already exists")
        repository.branches[revision] = repository.find(json.loads(body).get("startingPoint", "main")).sha
        return Answer({}, 201)

    def validate_yaml(self, request: Request, _) -> Answer:
        return Answer({"errors": [], "warnings": []})

    def info(self, request: Request, _, repo_id: str, revision: str) -> Answer:
        repository = self._open(request, repo_id)
        commit = repository.find(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        about = {"id": repo_id, "author": repo_id.split("/")[0], "private": repository.private, "tags": []}
        return Answer({**about, "sha": commit.sha, "siblings": siblings})

    def tree(self, request: Request, _, repo_id: str, revision: str, path: str) -> Answer:
        files = self._open(request, repo_id).find(revision).files
        prefix = f"{path}/" if path else ""
        listing = {}
        for name in sorted(name for name in files if name.startswith(prefix)):
            for slash in re.finditer("/", name):
                folder = name[: slash.start()]
                listing[folder] = {"type": "directory", "path": folder, "oid": _git_oid(b""), "size": 0}
            listing[name] = _describe(name, files[name])
        if path and not listing:
            raise refusal(404, "Entry not found", "EntryNotFound")
        deep = request.query.get("recursive", "").lower() == "true"
        below = {name: name[len(prefix) :] for name in listing if name.startswith(prefix)}
        return Answer([listing[name] for name, rest in below.items() if deep or "/" not in rest])

    def preupload(self, request: Request, body: bytes, repo_id: str, revision: str) -> Answer:
        """Say how each file is to come, and what stands there: the client leaves out what has not changed."""
        there = self._open(request, repo_id).find(revision).files
        modes = []
        for file in json.loads(body)["files"]:
            path, lfs = file["path"], _is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
            mode = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if path in there:
                mode["oid"] = (_sha256 if lfs else _git_oid)(there[path])
            modes.append(mode)
        return Answer({"files": modes})

    def lfs_batch(self, request: Request, body: bytes, repo_id: str) -> Answer:
        self._open(request, repo_id)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(body)["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self._objects:
                verify = {"href": f"{self.url}/{repo_id}.git/info/lfs/objects/verify"}
                wanted["actions"] = {"upload": {"href": self._sign(wanted["oid"])}, "verify": verify}
        return Answer({"transfer": "basic", "objects": objects})

    def lfs_verify(self, request: Request, body: bytes, repo_id: str) -> Answer:
        self._open(request, repo_id)
        if json.loads(body)["oid"] not in self._objects:
            raise refusal(404, "Object does not exist")
        return Answer({})

    def _sign(self, oid: str) -> str:
        return f"{self._storage_url}/objects/{oid}?X-Amz-Signature={secrets.token_hex(32)}"

    def lfs_upload(self, request: Request, body: bytes, oid: str) -> Answer:
        if _sha256(body) != oid:
            raise refusal(400, "XAmzContentSHA256Mismatch")
        self._objects[oid] = body
        return Answer()

    def lfs_download(self, request: Request, _, oid: str) -> Answer:
        return _serve(request, self._objects[oid], {"ETag": f'"{oid}"'})

    def commit(self, request: Request, body: bytes, repo_id: str, revision: str) -> Answer:
        repository = self._open(request, repo_id)
        files = repository.files(revision)
        header, *operations = (json.loads(line) for line in body.splitlines())
        if revision not in repository.branches:
            raise refusal(404, "Invalid rev id: a commit is no branch", "RevisionNotFound")
        if not repository.branches[revision].startswith(header["value"].get("parentCommit", "")):
            raise refusal(412, "A commit has happened since. Please refresh and try again.")
        for operation in operations:
            self._apply(operation["key"], operation["value"], files)
        sha = repository.commit(revision, header["value"]["summary"], files)
        return Answer({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo_id}/commit/{sha}"})

    def _apply(self, key: str, value: dict, files: dict[str, bytes]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = base64.b64decode(value["content"])
        elif key == "lfsFile" and value["oid"] in self._objects:
            files[path] = self._objects[value["oid"]]
        elif key == "deletedFile" and path in files:
            del files[path]
        elif key == "deletedFile":
            raise refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise refusal(400, f"Cannot commit a {key} here, or its LFS object was never uploaded")

    def resolve(self, request: Request, _, repo_id: str, revision: str, path: str) -> Answer:
        commit = self._open(request, repo_id).find(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise refusal(404, "Entry not found", "EntryNotFound", headers)
        file = _describe(path, commit.files[path])
        headers["ETag"] = f'"{file["oid"]}"'
        if "lfs" not in file:
            return _serve(request, commit.files[path], headers)
        oid = file["lfs"]["oid"]
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(file["size"])}
        return Answer(b"", 302, {**headers, **linked, "Location": self._sign(oid)})

    def unknown(self, request: Request, _) -> Answer:
        raise refusal(404, "Sorry, we can't find the page you are looking for.")


REPO = r"/(?P<repo_id>[^/]+(?:/[^/]+)?)"
MODEL = rf"/api/models{REPO}"
REVISION = r"/(?P<revision>[^/]+)"  # its slashes are percent-encoded
OBJECT = r"/objects/(?P<oid>[0-9a-f]{64})"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami", HubServer.whoami),
    ("POST", r"/api/repos/create", "create", HubServer.create),
    ("POST", r"/api/validate-yaml", "validate_yaml", HubServer.validate_yaml),
    ("GET", rf"{MODEL}(?:/revision{REVISION})?", "info", HubServer.info),
    ("GET", rf"{MODEL}/tree{REVISION}(?:/(?P<path>.*))?", "tree", HubServer.tree),
    ("PUT", rf"{MODEL}/settings", "settings", HubServer.settings),
    ("POST", rf"{MODEL}/branch{REVISION}", "branch", HubServer.branch),
    ("POST", rf"{MODEL}/preupload{REVISION}", "preupload", HubServer.preupload),
    ("POST", rf"{REPO}\.git/info/lfs/objects/batch", "lfs_batch", HubServer.lfs_batch),
    ("PUT", OBJECT, "lfs_upload", HubServer.lfs_upload),
    ("POST", rf"{REPO}\.git/info/lfs/objects/verify", "lfs_verify", HubServer.lfs_verify),
    ("POST", rf"{MODEL}/commit{REVISION}", "commit", HubServer.commit),
    ("GET", rf"{REPO}/resolve{REVISION}/(?P<path>.+)", "resolve", HubServer.resolve),
    ("GET", OBJECT, "lfs_download", HubServer.lfs_download),
]


def _route(method: str, path: str) -> tuple:
    """The endpoint's name, its handler, and what the path tells it; for a ``HEAD``, those of the ``GET``."""
    for asked, pattern, endpoint, handler in ROUTES:
        found = re.fullmatch(pattern, path)
        if found and asked == method.replace("HEAD", "GET"):
            return endpoint, handler, {name: unquote(text or "") for name, text in found.groupdict().items()}
    return "unknown", HubServer.unknown, {}


def _wants_private(wanted: dict, otherwise: bool) -> bool:
    """What a request says about privacy: newer clients send ``visibility``, older ones ``private``."""
    if "visibility" in wanted:
        return wanted["visibility"] == "private"
    return wanted.get("private", otherwise)


def _is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file becomes an LFS object: weights, and what is big or binary; never an empty file."""
    return size > 0 and (path.endswith(".safetensors") or size > 10 * 2**20 or b"\0" in sample[:512])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _describe(path: str, content: bytes) -> dict:
    """A file as listings show it. Git holds but a pointer to an LFS object, so the oid is the pointer's."""
    size, sha256 = len(content), _sha256(content)
    if not _is_lfs(path, size, content):
        return {"type": "file", "path": path, "oid": _git_oid(content), "size": size}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    lfs = {"oid": sha256, "size": size, "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "oid": _git_oid(pointer), "size": size, "lfs": lfs}


def _serve(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
    """A file, or the part that is asked for: a client goes on where its download broke off."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not wanted:
        return Answer(content, 200, headers)
    part = content[int(wanted[1]) : int(wanted[2] or sys.maxsize - 1) + 1]
    extent = f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(content)}"
    return Answer(part, 206, {**headers, "Content-Range": extent})


class _Handler(BaseHTTPRequestHandler):
    """One connection, over which many requests may come."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else answers wait 40 ms between their headers and their body

    def setup(self):
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *_):
        pass

    def respond(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        endpoint, handler, arguments = _route(self.command, url.path)
        request = Request(self.command, url.path, dict(parse_qsl(url.query)), headers, endpoint)
        fault = self.server.hub.arrive(request)
        try:
            cut = fault and fault.cut_after_bytes
            body = self.receive(request, sys.maxsize if cut is None else cut)
            answer = self.server.hub.answer(request, body, fault, handler, arguments)
        except ConnectionError:  # the client went away, or the fault is that we do
            self.close_connection = True
        else:
            request.status = answer.status
            self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def receive(self, request: Request, limit: int) -> bytes:
        """Read the body, which comes in one piece or, from some clients, in chunks that tell their sizes."""
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        body, size = b"", int(self.headers.get("Content-Length", 0))
        while True:
            if chunked:
                size = int(self.rfile.readline(), 16)
            piece = self.rfile.read(min(size, limit - len(body)))
            body += piece
            request.bytes_received = len(body)
            if len(piece) < size:
                raise ConnectionAbortedError
            if chunked:
                self.rfile.readline()
            if not chunked or size == 0:
                return body

    def send(self, answer: Answer) -> None:
        raw = isinstance(answer.body, bytes)
        content = answer.body if raw else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/octet-stream" if raw else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Request-Id", f"Root=1-{secrets.token_hex(12)}")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class _Port(ThreadingHTTPServer):
    request_queue_size = 64  # clients download with many threads

    def __init__(self, hub: HubServer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        """Keep quiet: this is a client that closed its connection."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in self.connections:  # else their threads would go on answering
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
