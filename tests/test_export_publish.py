"""Publishing a release: what is refused before anything is sent, and an upload to a stand-in for the hub on loopback.

The stand-in answers as the hub does: repositories, the check of a card, the choice between git and large files, and
commits. Large files go to addresses that are signed, without the token.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from export_tiny import LLAMA, OWN, release
from huggingface_hub import close_session, constants

import export.upload
from common.errors import Code, UserError
from common.provenance import DataSource
from export.__main__ import main
from export.release import read_release
from export.upload import obstacles

SECRET = "hf_neverToBeSeen"
SIGNATURE = "X-Signature=neverToBeSeenEither"
REPO = "me/My-Model"


class Hub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, bool] = {}
        """Whether it is private, by name."""
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        """Content by sha256, committed or not."""
        self.commits: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str, Message]] = []
        self.refuses: Callable[[str, str], int | None] = lambda method, path: None
        """The error status for a request, None to answer it."""
        self.page_of_a_proxy = False
        self.says_of_cards: tuple[int, dict[str, Any]] = (200, {"errors": [], "warnings": []})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self) -> list[str]:
        """sha256 of the large files in the order in which they came."""
        return [path.removeprefix("/large/") for method, path, _ in self.asked if method == "PUT"]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def setup(self) -> None:
        super().setup()
        assert isinstance(self.server, Hub)
        self.hub = self.server

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers))
        if self.hub.page_of_a_proxy:
            return self._send(200, b"<html>please log in</html>")
        status = self.hub.refuses(self.command, path)
        if path.startswith("/large/"):
            assert SIGNATURE in self.path and "Authorization" not in self.headers
            if status is None:
                self.hub.large[path.removeprefix("/large/")] = body
            return self._send(status or 200, b"")
        if status is None and self.headers.get("Authorization") != f"Bearer {SECRET}":
            status = 401
        if status is not None:
            return self._json({"error": f"no {SIGNATURE}"}, status)
        return self._api(path, body)

    def _api(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}"
            known = name in self.hub.repos
            self.hub.repos.setdefault(name, said.get("visibility") == "private")
            return self._json({"url": f"{self.hub.address}/{name}"}, 409 if known else 200)
        if path == "/api/validate-yaml":
            assert "license:" in json.loads(body)["content"]
            status, said = self.hub.says_of_cards
            return self._json(said, status)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._json(
                {"transfer": "basic", "objects": [self._object(one) for one in json.loads(body)["objects"]]}
            )
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path)
        assert found, path
        name, what = found[1], found[2] or ""
        if name not in self.hub.repos:
            return self._json({"error": "Repository not found"}, 404)
        if what == "/preupload/main":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".gguf") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        if what == "/commit/main":
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        assert what == "", path
        return self._json({"id": name, "private": self.hub.repos[name], "sha": "0" * 40, "siblings": [], "tags": []})

    def _object(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.hub.large:
            return asked
        return asked | {"actions": {"upload": {"href": f"{self.hub.address}/large/{asked['oid']}?{SIGNATURE}"}}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.files.setdefault(name, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value)
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        self._json({"commitUrl": f"{self.hub.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module", autouse=True)
def direct_connections() -> Iterator[None]:
    """The library keeps one client, which reads the proxies when it is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        close_session()
        yield
        close_session()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, loopback: None) -> Iterator[Hub]:
    """A running stand-in that HF_ENDPOINT names, and a token for it."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage speaks a protocol of its own
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return release(tmp_path, OWN)


def refused(code: Code, *arguments: str | Path, wanted: str = "", got: str = "", next_step: str = "") -> UserError:
    """The error of this code, whose fields contain these values and no secret."""
    with refuses(code, wanted=wanted, got=got, next_step=next_step) as caught:
        main(["publish", *map(str, arguments)])
    (error,) = caught
    assert SECRET not in str(error) and SIGNATURE not in str(error) and "\n" not in str(error)
    assert error.__cause__ is None, "the library's own words hold addresses that are signed"
    return error


def upload(folder: Path, *more: str) -> None:
    assert main(["publish", str(folder), "--repo", REPO, "--upload", *more]) == 0


# A dry run


def test_a_dry_run_sends_nothing_and_tells_everything(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (folder / ".DS_Store").write_text("-")
    assert main(["publish", str(folder), "--repo", REPO]) == 0
    told = capsys.readouterr().out
    assert hub.asked == []
    assert told.startswith(f"to {hub.address}/{REPO} (public")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != ".DS_Store"}
    listed = re.findall(r"^ +([\d.]+ k?B)  (.*)$", told, re.MULTILINE)
    assert {name for _, name in listed} == set(sizes) and f"\n{len(sizes)} files, " in told
    assert (f"{sizes['T-Q8_0.gguf']} B", "T-Q8_0.gguf") in listed
    assert "left out, since SHA256SUMS does not list it: .DS_Store" in told
    assert "licence on the hub: apache-2.0" in told and "in the way" not in told
    assert told.endswith("a dry run: nothing was sent. --upload sends it, with HF_TOKEN in the environment.\n")


def test_a_dry_run_names_what_is_owed_what_is_missing_and_what_is_in_the_way(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = release(tmp_path, OWN, LLAMA, DataSource(name="web", stage="corpus"))
    (folder / "T-Q8_0.gguf").unlink()
    assert main(["publish", str(folder), "--repo", REPO, "--private"]) == 1
    told = capsys.readouterr().out
    assert f"{REPO} (private):" in told and SECRET not in told and hub.asked == []
    assert f"owed (org/talks): {LLAMA.obligations[0]}\n" in told and "shown with it: Built with Llama\n" in told
    assert "missing: the licence text of org/talks, in licences/org--talks/\n" in told
    in_the_way = obstacles(read_release(folder), REPO, licence_checked=False)
    assert [each.code for each in in_the_way] == ["damaged", "contradiction", "contradiction", "needs-consent"]
    named = ("T-Q8_0.gguf", REPO, "the title T ", "web")
    assert all(name in each.got for name, each in zip(named, in_the_way, strict=True))
    assert "me/Llama-My-Model" in in_the_way[1].next_step
    assert all(each.got in told and each.next_step in told for each in in_the_way)


def test_quoted_rows_are_counted_by_source(tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    folder = release(tmp_path / "open", replace(OWN, quotable=True))
    quoted = [{"source": OWN.name, "id": "1", "text": "桜"}]
    data: dict[str, Any] = {"corpus": {"samples": {"kept": quoted, "short": quoted}}, "conversations": None}
    _with_report(folder, {"data": data, "samples": [{"text": "はい"}]})
    assert main(["publish", str(folder), "--repo", REPO]) == 0
    told = capsys.readouterr().out
    assert f"quoted: 2 rows of {OWN.name}\n" in told and "sample answers of the model: 1\n" in told
    mine = DataSource(name="mine", licence="MIT", stage="corpus")
    folder = release(tmp_path / "private", replace(OWN, quotable=True), mine)
    _with_report(folder, {"data": {}, "samples": [{"text": "はい"}]})
    (in_the_way,) = obstacles(read_release(folder), REPO, licence_checked=False)
    assert in_the_way.code == "needs-consent" and "sample answers in report.json" in in_the_way.got
    assert "mine" in in_the_way.got
    data["corpus"]["samples"]["kept"].append({"source": "mine", "id": "2", "text": "梅"})
    _with_report(folder, {"data": data, "samples": []})
    assert main(["publish", str(folder), "--repo", REPO]) == 1
    told = capsys.readouterr().out
    assert "quoted: 2 rows of mine\n" in told
    assert "sample answers of the model: none\n" in told
    (in_the_way,) = obstacles(read_release(folder), REPO, licence_checked=False)
    assert in_the_way.code == "needs-consent" and "rows of mine in report.json" in in_the_way.got


def _with_report(folder: Path, report: dict[str, Any]) -> None:
    """Put a report into a release, and its line into the sums."""
    content = json.dumps(report).encode()
    (folder / "report.json").write_bytes(content)
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    lines = [line for line in sums if not line.endswith("  report.json")]
    lines.append(f"{hashlib.sha256(content).hexdigest()}  report.json")
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


# What is refused before anything is sent


@pytest.mark.parametrize(
    "repo", ["My-Model", "me/", "/x", "me/my model", "me/a--b", "me/a/b", "../x", "me/.x", "me/" + "x" * 99]
)
@pytest.mark.parametrize("more", [(), ("--upload",)])
def test_a_malformed_name_is_refused(repo: str, more: tuple[str, ...], folder: Path, hub: Hub) -> None:
    refused("wrong-format", folder, "--repo", repo, *more, got=repr(repo), next_step="--repo")
    assert hub.asked == []


def test_what_is_no_release_is_refused(tmp_path: Path, folder: Path, hub: Hub) -> None:
    refused("not-found", tmp_path, "--repo", REPO, wanted="SHA256SUMS", got=str(tmp_path))
    sums = (folder / "SHA256SUMS").read_text()
    for line in ("no sum at all", f"{'0' * 64}  ../secret", f"{'0' * 64}  /etc/passwd"):
        (folder / "SHA256SUMS").write_text(sums + line + "\n")
        refused("wrong-format", folder, "--repo", REPO, "--upload", wanted="SHA256SUMS", got=repr(line))
    (folder / "SHA256SUMS").write_text("".join(line for line in sums.splitlines(True) if "README" not in line))
    refused("not-found", folder, "--repo", REPO, wanted="README.md")
    (folder / "SHA256SUMS").write_text(sums)
    (folder / "README.md").unlink()
    refused("not-found", folder, "--repo", REPO, wanted="README.md")
    (folder / "README.md").write_text("---\n{ broken\n---\n")
    refused("damaged", folder, "--repo", REPO, wanted="README.md")
    assert hub.asked == []


def test_a_changed_file_is_not_uploaded(folder: Path, hub: Hub) -> None:
    with (folder / "T-Q4_K_M.gguf").open("ab") as file:
        file.write(b"!")
    refused("damaged", folder, "--repo", REPO, "--upload", wanted=REPO, got="T-Q4_K_M.gguf")
    assert hub.asked == []


def test_llama_data_needs_llamas_name(tmp_path: Path, hub: Hub) -> None:
    folder = release(tmp_path / "a", LLAMA)
    error = refused("several", folder, "--repo", "Llama-Org/My-Model", "--upload", got="the name Llama-Org/My-Model")
    assert "the title T" in error.got and "Llama-Org/Llama-My-Model" in error.next_step
    assert hub.asked == []
    named = release(tmp_path / "b", LLAMA, title="Llama-My-Model")
    assert main(["publish", str(named), "--repo", "me/Llama-My-Model", "--upload"]) == 0
    assert "README.md" in hub.files["me/Llama-My-Model"]


@pytest.mark.parametrize("sources", [(), (OWN, DataSource(name="web", stage="corpus"))])
def test_unknown_licences_need_a_person_who_has_looked(
    sources: tuple[DataSource, ...], tmp_path: Path, hub: Hub
) -> None:
    folder = release(tmp_path, *sources)
    unknown = "web" if sources else "everything"
    refused("needs-consent", folder, "--repo", REPO, "--upload", got=unknown, next_step="--licence-checked")
    assert hub.asked == []
    if sources:
        upload(folder, "--licence-checked")
        assert "T-Q4_K_M.gguf" in hub.files[REPO]


def test_without_a_token_nothing_is_tried(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    refused("no-access", folder, "--repo", REPO, "--upload", wanted="HF_TOKEN", got="none")
    assert hub.asked == []


# An upload


def test_a_release_whose_terms_ask_for_a_copy_needs_their_text(tmp_path: Path, hub: Hub) -> None:
    copy = ("Gemma: pass on a copy of the Gemma Terms of Use and its notice.",)
    gemma = DataSource(name="org/answers:ja", licence="Gemma Terms of Use", obligations=copy, stage="conversations")
    folder = release(tmp_path, OWN, gemma)
    refused("not-found", folder, "--repo", REPO, "--upload", got="org/answers", next_step="licences/org--answers/")
    assert hub.asked == []
    text = folder / "licences" / "org--answers" / "GEMMA_TERMS"
    text.parent.mkdir(parents=True)
    text.write_text("Gemma")
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write(f"{hashlib.sha256(text.read_bytes()).hexdigest()}  licences/org--answers/GEMMA_TERMS\n")
    upload(folder)
    assert hub.files[REPO]["licences/org--answers/GEMMA_TERMS"] == b"Gemma"


def test_duties_are_told_before_anything_is_sent(tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    duty = DataSource(name="org/set", licence="MIT", obligations=("Name it.",), stage="corpus")
    upload(release(tmp_path, duty))
    told = capsys.readouterr().out
    assert f"to {hub.address}/{REPO} (public" in told and "a dry run" not in told
    assert "missing: the licence text of org/set, in licences/org--set/\n" in told
    assert told.index("owed (org/set): Name it.") < told.index("T-Q4_K_M.gguf: ")


@pytest.mark.parametrize("answer", [(400, {"error": "bad"}), (200, {"errors": [{"message": "license"}]})])
def test_a_card_that_the_hub_refuses_leaves_no_empty_repository(
    answer: tuple[int, dict[str, Any]], folder: Path, hub: Hub
) -> None:
    hub.says_of_cards = answer
    refused("wrong-format", folder, "--repo", REPO, "--upload", got="README.md")
    assert hub.repos == {} and hub.sent() == []


def test_a_defect_of_ours_is_not_called_the_hubs(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(size: int) -> str:
        raise ValueError(f"cannot say {size}")

    monkeypatch.setattr(export.upload.wording, "size", broken)
    files = {name: folder / name for name in ("README.md", "T-Q4_K_M.gguf")}
    with pytest.raises(ValueError, match="cannot say"):
        export.upload.send_files(files, REPO, private=False, message="m")


def test_an_upload_is_one_commit_of_exactly_the_release(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes.txt").write_text("my own")
    upload(folder, "--message", "第一版")
    sent = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "notes.txt"}
    assert hub.files == {REPO: sent} and hub.repos == {REPO: False}
    assert [commit["summary"] for commit in hub.commits] == ["第一版"]
    told = capsys.readouterr()
    assert told.out.endswith(f"published: {hub.address}/{REPO}\n") and "T-Q4_K_M.gguf: " in told.out
    assert SECRET not in told.out + told.err and SIGNATURE not in told.out + told.err
    for path in folder.rglob("*"):
        assert SECRET.encode() not in path.read_bytes()
    assert {path.name for path in folder.iterdir()} == {*sent, "notes.txt"}, "nothing is written into the release"


def test_again_it_makes_no_second_transfer(folder: Path, hub: Hub) -> None:
    upload(folder)
    assert len(hub.sent()) == 2
    upload(folder)
    assert len(hub.sent()) == 2
    assert [commit["summary"] for commit in hub.commits] == ["Release My-Model"] * 2


def test_after_an_interruption_it_goes_on(folder: Path, hub: Hub) -> None:
    second = hashlib.sha256((folder / "T-Q8_0.gguf").read_bytes()).hexdigest()
    hub.refuses = lambda method, path: 403 if path == f"/large/{second}" else None
    refused("no-access", folder, "--repo", REPO, "--upload", got="127.0.0.1")
    assert hub.commits == [] and hub.files == {}, "nobody sees half a release"
    hub.refuses = lambda method, path: None
    upload(folder)
    first = hashlib.sha256((folder / "T-Q4_K_M.gguf").read_bytes()).hexdigest()
    assert hub.sent() == [first, second, second] and len(hub.commits) == 1


def test_a_private_repository_is_private_or_nothing_is_sent(folder: Path, hub: Hub) -> None:
    upload(folder, "--private")
    assert hub.repos == {REPO: True}
    hub.repos["me/Open"] = False
    refused("exists", folder, "--repo", "me/Open", "--upload", "--private", wanted="me/Open", got="public")
    assert set(hub.files) == {REPO}


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/repos/create", 401, "no-access"),
        ("/api/repos/create", 403, "no-access"),
        (f"/api/models/{REPO}/preupload/main", 403, "no-access"),
        (f"/api/models/{REPO}/commit/main", 400, "wrong-format"),
        (f"/api/models/{REPO}/commit/main", 404, "not-found"),
        (f"/api/models/{REPO}/commit/main", 413, "failed"),
        ("/api/repos/create", 429, "no-network"),
        ("/api/repos/create", 500, "failed"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(path: str, status: int, code: Code, folder: Path, hub: Hub) -> None:
    hub.refuses = lambda method, asked: status if asked == path else None
    error = refused(code, folder, "--repo", REPO, "--upload", wanted=REPO, got="127.0.0.1")
    assert (f"{status}" in error.got.replace(hub.address.removeprefix("http://"), "")) == (status != 429)
    named = {"no-access": "may write to me", "wrong-format": "README.md", "not-found": "--repo"}
    assert named.get(code, "start again") in error.next_step
    assert hub.commits == []


def test_no_network_offline_mode_and_a_proxys_page(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.page_of_a_proxy = True
    refused("no-network", folder, "--repo", REPO, "--upload", got="JSON", next_step="proxy")
    monkeypatch.setenv("HF_ENDPOINT", "http://someone:password@127.0.0.1:9")
    error = refused("no-network", folder, "--repo", REPO, "--upload", got="127.0.0.1:9")
    assert "password" not in str(error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    refused("no-network", folder, "--repo", REPO, "--upload", got="HF_HUB_OFFLINE")
    close_session()
