"""Benchmark files from their repositories: what is taken from an archive, and every way in which one is refused."""

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from errors_tiny import refuses
from published_sources import write_benchmarks
from text_tiny import workspace

from common.errors import Code
from common.known_benchmarks import BENCHMARKS, sources
from common.sources import download
from recipes.stages.benchmarks import (
    BenchmarkFilesConfig,
    BenchmarkQuestionsConfig,
    benchmark_files,
    benchmark_questions,
)

pytestmark = pytest.mark.usefixtures("no_proxy")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"data/a.json": b"[1]", "data/b.json": b"[2]", "data/deep/c.json": b"[3]", "README.md": b"# A benchmark"}


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "WAITS_S", (0.0, 0.0))


def archive(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        link = tarfile.TarInfo("repository-0123/data/link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, content in files.items():
            member = tarfile.TarInfo(f"repository-0123/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def flipped(content: bytes, place: int) -> bytes:
    """With one bit another."""
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


@pytest.fixture
def server(loopback: None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Its address, and what it answers by path; `status` and `cut` (bytes that come) hold for one answer."""
    answers: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        def do_GET(self) -> None:
            body = answers.get(self.path)
            self.send_response(int(answers.pop("status", b"404" if body is None else b"200")))
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            cut = int(answers.pop("cut", b"0"))
            self.wfile.write((body or b"")[: cut or None])

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", answers
    running.shutdown()
    running.server_close()


def registry(folder: Path, *, patterns: str = '["data/*.json"]', sha256: str | None = None) -> Path:
    path = folder / "registry.toml"
    lines = ["[mine]", 'repository = "org/set"', f'commit = "{COMMIT}"', 'licence = "MIT"', f"files = {patterns}"]
    lines += [] if sha256 is None else ["[mine.sha256]", f'"data/a.json" = "{sha256}"']
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_files_that_are_named_and_no_others(tmp_path: Path, server: tuple[str, dict[str, bytes]]) -> None:
    address, answers = server
    answers[f"/org/set/tar.gz/{COMMIT}"] = archive(FILES)
    listed = registry(tmp_path, sha256=hashlib.sha256(b"[1]").hexdigest())
    facts = benchmark_files(BenchmarkFilesConfig(registry=listed, address=address), workspace(tmp_path / "out"))
    told = {"repository": "org/set", "commit": COMMIT, "licence": "MIT", "files": 2}
    assert facts == {"benchmarks": {"mine": told}}
    written = {path.relative_to(tmp_path / "out/files").as_posix() for path in (tmp_path / "out/files").rglob("*.*")}
    assert written == {"mine/data/a.json", "mine/data/b.json"}
    answers.clear()  # a later start of the same stage fetches nothing that is there
    assert benchmark_files(BenchmarkFilesConfig(registry=listed, address=address), workspace(tmp_path / "out")) == facts


@pytest.mark.parametrize(
    ("content", "patterns", "sha256", "code", "named"),
    [
        (None, '["data/*.json"]', None, "not-found", "{url} (status 404)"),
        (b"no archive", '["data/*.json"]', None, "damaged", "{url}"),
        (archive(FILES)[:60], '["data/*.json"]', None, "damaged", "{url}"),
        (flipped(archive(FILES), -6), '["data/*.json"]', None, "damaged", "(BadGzipFile)"),
        (flipped(archive(FILES), 40), '["data/*.json"]', None, "damaged", "{url}"),
        (archive(FILES), '["data/*.json", "test/*.xml"]', None, "not-found", "no test/*.xml in org/set"),
        (archive(FILES), '["data/*.json"]', "0" * 64, "damaged", "data/a.json"),
        (archive({"data/b.json": b"[2]"}), '["data/*.json"]', "0" * 64, "not-found", "no data/a.json in org/set"),
    ],
    ids=[
        "absent",
        "no archive",
        "cut",
        "other checksum",
        "other bits",
        "a pattern without files",
        "other bytes",
        "a file missing",
    ],
)
def test_what_cannot_be_had_is_named(
    tmp_path: Path,
    server: tuple[str, dict[str, bytes]],
    content: bytes | None,
    patterns: str,
    sha256: str | None,
    code: Code,
    named: str,
) -> None:
    address, answers = server
    if content is not None:
        answers[f"/org/set/tar.gz/{COMMIT}"] = content
    config = BenchmarkFilesConfig(registry=registry(tmp_path, patterns=patterns, sha256=sha256), address=address)
    with refuses(code, wanted="benchmark mine", got=named.format(url=f"{address}/org/set/tar.gz/{COMMIT}")):
        benchmark_files(config, workspace(tmp_path / "out"))


def test_no_network(tmp_path: Path) -> None:
    config = BenchmarkFilesConfig(registry=registry(tmp_path), address="http://127.0.0.1:9")
    with refuses("no-network", got="(URLError)", next_step="DIR/benchmarks"):
        benchmark_files(config, workspace(tmp_path / "out"))
    with refuses("not-found", got="(ValueError)"):  # no address, which is tried once
        benchmark_files(replace(config, address="none"), workspace(tmp_path / "out"))


@pytest.mark.parametrize("failure", [{"cut": b"40"}, {"status": b"503"}])
def test_what_may_pass_is_tried_again(
    tmp_path: Path, server: tuple[str, dict[str, bytes]], failure: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    address, answers = server
    answers |= {f"/org/set/tar.gz/{COMMIT}": archive(FILES)} | failure
    config = BenchmarkFilesConfig(registry=registry(tmp_path), address=address)
    assert benchmark_files(config, workspace(tmp_path / "out"))["benchmarks"]["mine"]["files"] == 2
    assert "trying again" in capsys.readouterr().err


def test_a_local_archive_that_is_damaged_is_named(tmp_path: Path) -> None:
    place = tmp_path / "org" / "set" / "tar.gz" / COMMIT
    config = BenchmarkFilesConfig(registry=registry(tmp_path), address=tmp_path.as_uri())
    with refuses("not-found", got=place.as_uri()):
        benchmark_files(config, workspace(tmp_path / "out"))
    place.parent.mkdir(parents=True)
    place.write_bytes(archive(FILES)[:-3])
    with refuses("damaged", got=place.as_uri()):
        benchmark_files(config, workspace(tmp_path / "out"))


def test_terms_of_a_part_are_told() -> None:
    assert "japanese_history and world_history" in sources()["jmmlu"]["restriction"]


def test_the_report_tells_the_same_terms() -> None:
    registry = {entry["repository"]: entry for entry in sources().values()}
    for benchmark in BENCHMARKS.values():
        entry = registry[benchmark.publisher]
        assert entry["licence"] == benchmark.licence.replace("CC BY", "CC-BY").replace(" ", "-")
        assert entry.get("restriction") == benchmark.note


def test_the_report_can_name_every_benchmark_that_may_be_left_out(tmp_path: Path) -> None:
    write_benchmarks(tmp_path / "benchmarks")
    facts = benchmark_questions(
        BenchmarkQuestionsConfig(benchmarks=tmp_path / "benchmarks"), workspace(tmp_path / "questions")
    )
    assert facts["questions"].keys() == BENCHMARKS.keys()


def test_niilc_s_training_half_is_no_test(tmp_path: Path) -> None:
    write_benchmarks(tmp_path / "benchmarks")
    niilc = tmp_path / "benchmarks" / "niilc"
    (niilc / "NIILC-ECQA2015_test.xml").rename(niilc / "NIILC-ECQA2015_dev.xml")
    facts = benchmark_questions(
        BenchmarkQuestionsConfig(benchmarks=tmp_path / "benchmarks"), workspace(tmp_path / "questions")
    )
    assert "niilc" not in facts["questions"] and "NIILC-ECQA2015_dev" in facts["left_out"]["niilc"]
    assert "niilc" not in (tmp_path / "questions" / "questions.jsonl").read_text(encoding="utf-8")


def test_the_registry_pins_every_repository_to_a_commit() -> None:
    entries = sources()
    assert {"jglue", "jmmlu", "jemhopqa", "niilc", "mgsm"} <= entries.keys()
    for entry in entries.values():
        assert len(bytes.fromhex(entry["commit"])) == 20 and entry["licence"] and entry["files"]
        assert all(len(bytes.fromhex(digest)) == 32 for digest in entry.get("sha256", {}).values())


@pytest.mark.shared_data
def test_the_known_checksums_are_those_of_the_files_at_hand(shared_data: Path) -> None:
    entries = sources()
    here = {hashlib.sha256(path.read_bytes()).hexdigest() for path in shared_data.rglob("*") if path.is_file()}
    known = {digest for entry in entries.values() for digest in entry.get("sha256", {}).values()}
    assert len(known) == 8 and known <= here
