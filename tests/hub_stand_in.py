"""A local server that answers as the model hub does, for tests: data sets, models, broken connections, gates, refusals.

Paths, headers and error codes are the hub's, and large files are on another host.
"""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Generator
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from common.sources import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_neverToBeSeen"
PAGE = 3


@dataclass(kw_only=True)
class Repo:
    files: dict[str, bytes]
    gated: bool = False
    hides_gate: bool = False
    """The listing is public, as on the hub; otherwise everything is refused."""
    listed_sha256: dict[str, str] = field(default_factory=dict)
    """Checksums that the hub lists, where they differ from the bytes'."""
    listed_bytes: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """For each request for the file in turn: after how many bytes the connection breaks."""
    ignores_range: bool = False
    small: bool = False
    """Files are in git itself: their tag is git's hash, and the hub sends them from its own address."""
    moved: bool = False
    """The commit is gone: the branch's history was rewritten."""
    statuses: list[int] = field(default_factory=list)
    """Error statuses of the first requests for files."""


class Hub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.asked: list[tuple[str, str, Message]] = []
        self.page_of_a_proxy = False

    def contents(self) -> list[Message]:
        """The headers of the requests that brought bytes of large files."""
        return [headers for method, path, headers in self.asked if method == "GET" and path.startswith("/large/")]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the client would wait for the second packet of each answer
    hub: Hub

    def setup(self) -> None:
        super().setup()
        assert isinstance(self.server, Hub)
        self.hub = self.server

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(split.path)
        self.hub.asked.append((self.command, path, self.headers))
        if self.hub.page_of_a_proxy:
            return self._send(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        kind, name, rest = self._parse(path)
        repo = self.hub.repos.get(name)
        if repo is None:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if kind == "large":
            return self._content(repo, rest)
        if "private-token" in self.headers.get("Authorization", ""):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        closed = repo.gated and self.headers.get("Authorization") != f"Bearer {SECRET}"
        if closed and not (repo.hides_gate and kind == "api" and rest != "auth-check"):
            return self._refuse(403, "GatedRepo", "Access is restricted and you are not in the authorized list.")
        if kind == "api":
            return self._api(name, repo, rest, urllib.parse.parse_qs(split.query))
        return self._resolve(name, repo, rest)

    def _parse(self, path: str) -> tuple[str, str, str]:
        prefixes = {"/api/datasets/": "api", "/api/models/": "api", "/large/": "large", "/datasets/": "resolve"}
        prefix = next((prefix for prefix in prefixes if path.startswith(prefix)), "/")
        org, name, *rest = path.removeprefix(prefix).split("/")
        return prefixes.get(prefix, "resolve"), f"{org}/{name}", "/".join(rest)  # a model's files have no prefix

    def _api(self, name: str, repo: Repo, rest: str, query: dict[str, list[str]]) -> None:
        what, _, tail = rest.partition("/")
        if what == "auth-check":
            return self._send(200, b"OK", {})
        revision, _, folder = tail.partition("/")
        if revision not in ("", "main", "v1", COMMIT):
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        if what in ("", "revision"):
            return self._json({"id": name, "sha": COMMIT, "gated": "auto" if repo.gated else False, "siblings": []})
        assert what == "tree" and query["recursive"] == ["true"]
        inside = [path for path in sorted(repo.files, reverse=True) if not folder or path.startswith(folder + "/")]
        if not inside:
            return self._refuse(404, "EntryNotFound", f"{folder} does not exist")
        start = int(query.get("cursor", ["0"])[0])
        listed: list[dict[str, Any]] = [{"type": "directory", "path": "a folder", "oid": "1" * 40, "size": 0}]
        for path in inside[start : start + PAGE]:
            listed.append({"type": "file", "path": path, "oid": "2" * 40, "size": len(repo.files[path])})
        more: dict[str, str] = {}
        if start + PAGE < len(inside):
            url = f"http://127.0.0.1:{self.hub.server_port}{urllib.parse.urlsplit(self.path).path}"
            more["Link"] = f'<{url}?recursive=true&expand=false&cursor={start + PAGE}>; rel="next"'
        self._json(listed, more)

    def _resolve(self, name: str, repo: Repo, rest: str) -> None:
        _, revision, file = rest.split("/", 2)
        if repo.moved:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        assert revision == COMMIT, "files are asked for at the commit"
        if repo.statuses and not file.endswith(".md"):
            return self._refuse(repo.statuses.pop(0), "", "try later")
        if file not in repo.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        body = repo.files[file]
        if repo.small or file.endswith((".md", ".json")):  # what git itself holds, as a rule
            return self._send(200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'})
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(repo.listed_bytes.get(file, len(body))),
            "X-Linked-Etag": f'"{repo.listed_sha256.get(file) or hashlib.sha256(body).hexdigest()}"',
            # Another host than the one that was asked, as for large files on the hub.
            "Location": f"http://localhost:{self.hub.server_port}/large/{name}/{urllib.parse.quote(file)}",
        }
        self._send(302, b"", headers)

    def _content(self, repo: Repo, file: str) -> None:
        body, start = repo.files[file], 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        headers: dict[str, str] = {}
        if wanted and not repo.ignores_range:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cuts = repo.cuts.get(file)
        last = start + cuts.pop(0) if cuts else None
        self._send(206 if headers else 200, body[start:], headers, only=None if last is None else body[start:last])

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str], only: bytes | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if only is None else only)
        self.close_connection = only is not None


@contextlib.contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    """A running server that HF_ENDPOINT names; waits between tries take no time."""
    monkeypatch.setenv("NO_PROXY", "*")
    close_session()  # the library keeps one client, which reads the proxies when it is made
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would ask the real hub
    monkeypatch.setattr(download, "WAITS_S", (0.0, 0.0))
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        close_session()
