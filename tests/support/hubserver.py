"""A Hugging Face Hub on the loopback interface."""

import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.hubprocess import HubProcess

Files = Mapping[str, bytes | str] | str | Path


@dataclass(frozen=True)
class Request:
    """One request; its `route` is `info`, `auth`, `tree`, `paths`, `resolve` or `other`."""

    method: str
    path: str
    route: str
    headers: Mapping[str, str]
    at: float = field(default_factory=time.monotonic)

    @property
    def token(self) -> str | None:
        kind, _, value = self.headers.get("authorization", "").partition(" ")
        return value if kind == "Bearer" else None


@dataclass
class Repository:
    """A dataset repository: its commits, from oldest to newest, and who may read it."""

    id: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.refs.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


def _read(files: Files) -> dict[str, bytes]:
    if isinstance(files, str | Path):
        root = Path(files)
        found = (path for path in sorted(root.rglob("*")) if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}
    return {k: v.encode() if isinstance(v, str) else bytes(v) for k, v in files.items()}


class HubServer:
    """Serves repositories of datasets or models as the Hub does: info, tree, resolve, refusals.

    Args:
        fault: called with every `Request` before it is answered; None answers as usual, an
            integer answers with that status, a pair of an integer and a dict with these headers
            too, `"reset"` closes the connection at once,
            `"truncate"` sends half of the body, `"stall"` says nothing until the server closes.

    Example:
        with HubServer() as hub:
            sha = hub.add("ylecun/mnist", {"train.jsonl": '{"x": 1}\\n'}, alias="mnist")
            with hub.process() as client:
                client("import datasets; result = len(datasets.load_dataset('ylecun/mnist'))")
    """

    def __init__(self, fault: Callable[[Request], Any] | None = None):
        self.fault = fault
        self.requests: list[Request] = []
        self._repositories: dict[str, Repository] = {}
        self._aliases: dict[str, str] = {}
        self._closed = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_H", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(
        self,
        id: str,
        files: Files,
        *,
        alias: str | None = None,
        token: str | None = None,
        gated: bool = False,
        tag: str | None = None,
    ) -> str:
        """Commits `files` (a dict or a folder) as the whole of repository `id`; returns the commit.

        Args:
            id: `namespace/name`; a repository that is there already gets one more commit.
            files: path in the repository to content, or a folder to copy.
            alias: an old name, redirected to this repository.
            token: the only token that may read; everyone else is told that nothing is there (401).
            gated: everyone may see what there is, only the bearer of `token` may read it.
            tag: a name for this commit beside `main`.
        """
        repository = self._repositories.setdefault(id, Repository(id))
        repository.token, repository.gated = token, gated
        content = _read(files)
        digest = hashlib.sha1(f"{id}{len(repository.commits)}".encode())
        for path, data in sorted(content.items()):
            digest.update(path.encode() + data)
        sha = digest.hexdigest()
        repository.commits[sha] = content
        repository.refs["main"] = sha
        if tag:
            repository.refs[tag] = sha
        if alias:
            self._aliases[alias] = id
        return sha

    def process(self, home: str | Path | None = None, **env: str) -> HubProcess:
        """Starts a Python process that has this server as its Hub."""
        return HubProcess(self.url, home, **env)

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *_) -> None:
        self.close()


_API = re.compile(
    r"/api/(?:datasets|models)/(?P<id>[^/]+(?:/(?!revision/|tree/|paths-info/|auth-check)[^/]+)?)(?P<rest>.*)"
)
_RESOLVE = re.compile(r"/(?:datasets/)?(?P<id>[^/]+(?:/(?!resolve/)[^/]+)?)/resolve/(?P<rest>.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_) -> None:
        """The log is `HubServer.requests`."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        api, resolve = _API.fullmatch(url.path), _RESOLVE.fullmatch(url.path)
        match = api or resolve
        verb = match["rest"].lstrip("/").partition("/")[0] if api else ""
        names = {"": "info", "revision": "info", "tree": "tree", "paths-info": "paths"}
        names |= {"auth-check": "auth"}
        route = "resolve" if resolve else names.get(verb, "other") if api else "other"
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, self.path, route, headers)
        self.hub.requests.append(request)
        fault = self.hub.fault(request) if self.hub.fault else None
        if fault == "reset":
            # Linger 0 turns the close into a TCP reset.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(self.connection.detach())
            self.close_connection = True
            return
        if fault == "stall":
            self.hub._closed.wait()
            self.close_connection = True
            return
        if isinstance(fault, int):
            fault = fault, {}
        if isinstance(fault, tuple):
            status, headers = fault
            return self._error(status, "Injected", f"injected {status}", headers)
        self._truncate = fault == "truncate"
        if route == "other":
            return self._error(404, "NotFound", "no such page")
        if match["id"] in self.hub._aliases:
            place = self.path.replace(f"/{match['id']}", f"/{self.hub._aliases[match['id']]}", 1)
            return self._send(307, b"", {"Location": self.hub.url + place})
        repository = self.hub._repositories.get(match["id"])
        known = repository is not None and request.token == repository.token
        if repository is None or (repository.token and not known and not repository.gated):
            return self._error(401, "RepoNotFound", "Invalid username or password.")
        if repository.gated and not known and route in ("resolve", "auth"):
            status = 401 if request.token is None else 403
            return self._error(status, "GatedRepo", f"Access to {repository.id} is restricted.")
        revision, _, rest = (match["rest"] if resolve else match["rest"].lstrip("/")).partition("/")
        if api:
            revision, _, rest = rest.partition("/")
        revision, rest = urllib.parse.unquote(revision), urllib.parse.unquote(rest)
        if route == "auth":
            return self._json({})
        found = repository.files(revision or "main")
        if found is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        sha, files = found
        if route == "info":
            siblings = [{"rfilename": name} for name in files]
            info = {
                "id": repository.id,
                "author": repository.id.split("/")[0],
                "sha": sha,
                "private": bool(repository.token) and not repository.gated,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
            return self._json(info)
        if route == "tree":
            return self._tree(files, rest.strip("/"), query.get("recursive") == ["true"])
        if route == "paths":
            return self._paths(files, body)
        return self._file(sha, files, rest)

    def _tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> None:
        prefix = folder + "/" if folder else ""
        entries = [e for e in _entries(files) if e["path"].startswith(prefix)]
        if not recursive:
            entries = [e for e in entries if "/" not in e["path"][len(prefix) :]]
        if folder and not entries:
            return self._error(404, "EntryNotFound", f"{folder} does not exist")
        self._json(entries)

    def _paths(self, files: dict[str, bytes], body: bytes) -> None:
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(body)["paths"]
        else:
            wanted = urllib.parse.parse_qs(body.decode())["paths"]
        wanted = [wanted] if isinstance(wanted, str) else wanted
        self._json([e for e in _entries(files) if e["path"] in wanted])

    def _file(self, sha: str, files: dict[str, bytes], path: str) -> None:
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if path not in files:
            return self._error(404, "EntryNotFound", "Entry not found", headers)
        data = files[path]
        headers["ETag"] = f'"{_oid(data)}"'
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._send(200, data, headers)
        first, last = asked.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(int(last) + 1 if first and last else len(data), len(data))
        if start >= len(data):
            return self._send(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self._send(206, data[start:stop], headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, headers: dict | None = None) -> None:
        said = {
            "X-Error-Code": code,
            "X-Error-Message": message,
            "Content-Type": "application/json",
        }
        self._send(status, json.dumps({"error": message}).encode(), said | (headers or {}))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            if getattr(self, "_truncate", False):
                body, self.close_connection = body[: len(body) // 2], True
            self.wfile.write(body)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entries(files: dict[str, bytes]) -> list[dict]:
    folders = {str(p) for name in files for p in Path(name).parents} - {"."}
    entries = [
        {"type": "directory", "path": f, "oid": _oid(f.encode()), "size": 0} for f in folders
    ]
    entries += [
        {"type": "file", "path": name, "oid": _oid(data), "size": len(data)}
        for name, data in files.items()
    ]
    return sorted(entries, key=lambda entry: entry["path"])
