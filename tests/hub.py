"""A Hugging Face hub on this machine: what `huggingface_hub` asks for to push and pull models.

It speaks HTTP as the hub does: repositories with branches and commits, the upload of small files in
the commit and of large ones by Git LFS, whose contents must have the sha256 that they are named by,
and downloads by `resolve`, with a redirect for large files. Xet is not offered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_the_tests"
MAIN = "main"
LARGE = ".safetensors"
"""The suffix of files that are kept by LFS."""

Answer = tuple[int, Any, Mapping[str, str]]


@dataclass
class Repository:
    """The files of each commit, and the commit that each branch ends with."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    summaries: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.branches[MAIN] = self.commit({}, "initial commit")

    def commit(self, files: dict[str, bytes], summary: str) -> str:
        sha = uuid.uuid4().hex + uuid.uuid4().hex[:8]
        self.commits[sha] = files
        self.summaries.append(summary)
        return sha

    def files(self, revision: str) -> dict[str, bytes]:
        """Raises KeyError."""
        return self.commits[self.sha(revision)]

    def sha(self, revision: str) -> str:
        """Raises KeyError."""
        return revision if revision in self.commits else self.branches[revision]


class Hub:
    """The server, as a context manager.

    Attributes:
        repositories: by owner/name.
        seen: method and path of each request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.seen: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                hub._handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = handle_request

            def log_message(self, format: str, *args: object) -> None:
                return None

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        self.seen.append((request.command, path))
        with self._lock:
            status, content, headers = self._answer(request, path, body)
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(raw)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(raw)

    def _answer(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> Answer:
        if path.startswith("/lfs/"):  # a signed address: no token is sent there
            return self._object(request.command, path.removeprefix("/lfs/"), body)
        known = request.headers.get("authorization") == f"Bearer {TOKEN}"
        for method, pattern, answer in self._routes():
            if request.command in method and (match := re.fullmatch(pattern, path)):
                if not known and (request.command == "POST" or self._hidden(match)):
                    return _error(401, "RepoNotFound", "Invalid username or password.")
                try:
                    return answer(body, **match.groupdict())
                except KeyError:
                    return _error(404, "RepoNotFound", "Repository not found")
        return _error(404, "", f"no route of these tests: {request.command} {path}")

    def _hidden(self, match: re.Match[str]) -> bool:
        repository = self.repositories.get(match.groupdict().get("repo", ""))
        return repository is None or repository.private

    def _routes(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        repo, rest = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
        return [
            ("POST", "/api/repos/create", self._create),
            ("POST", "/api/validate-yaml", self._validate),
            ("POST", f"/api/models/{repo}/branch/{rest}", self._branch),
            ("POST", f"/api/models/{repo}/preupload/{rest}", self._preupload),
            ("POST", f"/api/models/{repo}/commit/{rest}", self._commit),
            ("POST", rf"/{repo}\.git/info/lfs/objects/batch", self._batch),
            ("GET", f"/api/models/{repo}", self._info),
            ("GET", f"/api/models/{repo}/revision/{rest}", self._info),
            ("GET HEAD", f"/{repo}/resolve/{rest}/(?P<file>.+)", self._resolve),
        ]

    def _create(self, body: bytes) -> Answer:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.address}/{name}"}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", **url}, {}
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return 200, url, {}

    def _validate(self, body: bytes) -> Answer:
        head = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        fields = {} if head is None else yaml.safe_load(head[1])
        wrong = [
            {"message": f"{name} must be a string"}
            for name in ("license", "library_name", "pipeline_tag")
            if not isinstance(fields.get(name), str)
        ]
        return (400 if wrong else 200), {"errors": wrong, "warnings": []}, {}

    def _branch(self, body: bytes, repo: str, revision: str) -> Answer:
        branches = self.repositories[repo].branches
        if revision in branches:
            return _error(409, "", f"Reference already exists: {revision}")
        branches[revision] = branches[MAIN]
        return 200, {}, {}

    def _preupload(self, body: bytes, repo: str, revision: str) -> Answer:
        self.repositories[repo].files(revision)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": modes}, {}

    def _batch(self, body: bytes, repo: str) -> Answer:
        objects = []
        for asked in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.address}/lfs/{asked['oid']}"}}
            there = asked["oid"] in self.objects
            objects.append({**asked, **({} if there else {"actions": upload})})
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _object(self, command: str, oid: str, body: bytes) -> Answer:
        if command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                return _error(400, "", "the content does not have this sha256")
            self.objects[oid] = body
            return 200, {}, {}
        return (200, self.objects[oid], {}) if oid in self.objects else _error(404, "", "none")

    def _commit(self, body: bytes, repo: str, revision: str) -> Answer:
        repository, summary = self.repositories[repo], ""
        files = dict(repository.files(revision))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    summary = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case other:
                    return _error(400, "", f"no operation of these tests: {other}")
        sha = repository.commit(files, summary)
        repository.branches[revision] = sha
        return 200, {"commitOid": sha, "commitUrl": f"{self.address}/{repo}/commit/{sha}"}, {}

    def _info(self, body: bytes, repo: str, revision: str = MAIN) -> Answer:
        repository = self.repositories[repo]
        try:
            files, sha = repository.files(revision), repository.sha(revision)
        except KeyError:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": name} for name in files]
        return 200, {"id": repo, "sha": sha, "private": True, "siblings": siblings}, {}

    def _resolve(self, body: bytes, repo: str, revision: str, file: str) -> Answer:
        repository = self.repositories[repo]
        files = repository.files(revision)
        if file not in files:
            return _error(404, "EntryNotFound", "Entry not found")
        content = files[file]
        sha256 = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": repository.sha(revision), "ETag": f'"{sha256}"'}
        if file.endswith(LARGE):
            self.objects[sha256] = content  # also one that a test has damaged
            large = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            return 302, b"", {**headers, **large, "Location": f"{self.address}/lfs/{sha256}"}
        return 200, content, headers


def _error(status: int, code: str, message: str) -> Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return status, {"error": message}, headers
