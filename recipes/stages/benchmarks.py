"""The stages `benchmark_files`, published files from their repositories, and `benchmark_questions`, their test items.

The registry of `common.known_benchmarks` has the files, repositories and licences. With SOURCES=DIR the files are those
of `DIR/benchmarks` and nothing is fetched. They are for scoring and for finding their items in training text, and are
not part of a release.
"""

import gzip
import hashlib
import http.client
import io
import json
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from common.disk import files_under
from common.errors import Code, UserError, require_at_least
from common.known_benchmarks import REGISTRY_FILE, sources
from common.sources import download
from common.sources.select import matches
from common.store import Workspace, stage
from eval.tasks.items import read_benchmarks
from eval.tasks.question_rows import benchmark_rows, choose_items

FILES_FOLDER = "files"
"""Inside the artifact: one folder for each benchmark, with the paths of its repository."""
MAX_ARCHIVE_BYTES = 2**29
_TIMEOUT_S = 60.0
_FACTS = ("repository", "commit", "licence", "restriction")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkFilesConfig:
    """Where the files come from."""

    registry: Path = REGISTRY_FILE
    """Counts by its content."""
    address: str = "https://codeload.github.com"
    """Server of `<repository>/tar.gz/<commit>`."""


@stage(version=2)
def benchmark_files(config: BenchmarkFilesConfig, workspace: Workspace) -> dict[str, Any]:
    """Write `files/<benchmark>/<path in the repository>`.

    Returns:
        `benchmarks`: {name: {repository, commit, licence, files}}, `files` a number, and `restriction` where a part of
        a benchmark has terms of its own.

    Raises:
        UserError: no network, no such commit, no such files in it, or a file whose checksum differs.
    """
    facts: dict[str, Any] = {}
    for name, entry in sources(config.registry).items():
        folder = workspace.folder / FILES_FOLDER / name
        address = f"{config.address}/{entry['repository']}/tar.gz/{entry['commit']}"
        if not folder.is_dir():  # else of a start that was ended
            partial = folder.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _extract(_archive(address, name), address, partial, entry, name)
            partial.rename(folder)
        count = sum(1 for _ in files_under(folder))
        facts[name] = {field: entry[field] for field in _FACTS if field in entry} | {"files": count}
    return {"benchmarks": facts}


def _archive(address: str, name: str) -> bytes:
    """The archive; after a broken connection or from a busy server it is requested again, as in `common.sources`."""
    waits_s = iter(download.WAITS_S)
    while True:
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as response:
                content: bytes = response.read(MAX_ARCHIVE_BYTES + 1)
                said = int(response.headers.get("Content-Length") or 0)
            if len(content) < min(said, MAX_ARCHIVE_BYTES + 1):  # read(n) does not report an early end
                raise http.client.IncompleteRead(content, said - len(content))
        except (OSError, ValueError, http.client.HTTPException) as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else None
            failure = type(error).__name__ if status is None else f"status {status}"
            is_network = not isinstance(error, ValueError) and not address.startswith("file:")
            transient = is_network if status is None else status in download.PASSING_STATUS
            wait_s = next(waits_s, None) if transient else None
            if wait_s is None:
                code = "no-network" if transient else "not-found"
                raise _unavailable(code, name, f"no answer for {address} ({failure})") from error
            print(f"{name}: {failure}; trying again in {wait_s:g} s", file=sys.stderr, flush=True)
            time.sleep(wait_s)
            continue
        if len(content) > MAX_ARCHIVE_BYTES:
            raise _unavailable("unsupported", name, f"more than {MAX_ARCHIVE_BYTES:,} bytes from {address}")
        return content


def _extract(archive: bytes, address: str, folder: Path, entry: dict[str, Any], name: str) -> None:
    """Write the files that the registry names; none of a damaged archive."""
    known: dict[str, str] = entry.get("sha256", {})
    written: set[str] = set()
    try:
        download.unpack_to_its_end(io.BytesIO(archive))  # tar alone stops at its own last block, before the checksum
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
            for member in files:
                inside = PurePosixPath(member.name)
                path = "/".join(inside.parts[1:])  # the first part is the repository's own folder
                if not member.isfile() or not any(matches(path, pattern) for pattern in entry["files"]):
                    continue
                extracted = files.extractfile(member)
                assert extracted is not None
                content = extracted.read()
                if path in known and hashlib.sha256(content).hexdigest() != known[path]:
                    raise _unavailable("damaged", name, f"{path} with another checksum than the registry has")
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                written.add(path)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        got = f"an archive of {address} that cannot be read ({type(error).__name__})"
        raise _unavailable("damaged", name, got) from error
    missing = [pattern for pattern in entry["files"] if not any(matches(path, pattern) for path in written)]
    missing += [path for path in known if path not in written]
    if missing:
        raise _unavailable("not-found", name, f"no {', '.join(missing)} in {entry['repository']}")


def _unavailable(code: Code, name: str, got: str) -> UserError:
    return UserError(
        code,
        wanted=f"the files of the benchmark {name} as published",
        got=got,
        next_step="check the network and start again, or put the files into DIR/benchmarks and set SOURCES=DIR",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkQuestionsConfig:
    """Which items: `world=BenchmarkQuestionsConfig(items_per_benchmark=1000)` replaces the generated world by them."""

    benchmarks: Path | None = None
    """Folder of the benchmark files; None in a recipe, where `pipeline` or `resolve` sets it."""
    items_per_benchmark: int | None = None
    """Largest number of items of each; None takes all."""

    def __post_init__(self) -> None:
        require_at_least(1, items_per_benchmark=self.items_per_benchmark, next_step="correct the recipe")


@stage(version=3)
def benchmark_questions(config: BenchmarkQuestionsConfig, workspace: Workspace) -> dict[str, Any]:
    """Write the test items of published benchmarks as `questions.jsonl`; there is no text.

    Returns:
        `questions`: {benchmark: {asked, available}}; `left_out`: {benchmark: why}, where its test items are missing.

    Raises:
        UserError: no folder, a damaged file in it, or no benchmark that can be scored.
    """
    if config.benchmarks is None:
        wanted, next_step = "a folder of benchmark files", "set `benchmarks` in the recipe"
        raise UserError("empty", wanted=wanted, got="none", next_step=next_step)
    chosen, left_out = choose_items(read_benchmarks(config.benchmarks), limit=config.items_per_benchmark)
    if not chosen:
        raise UserError(
            "empty",
            wanted=f"test items of JCommonsenseQA, JMMLU, JSQuAD, JEMHopQA, NIILC or MGSM in {config.benchmarks}",
            got="; ".join(f"{name}: {why}" for name, why in left_out.items()) or "other files only",
            next_step="add at least one of these benchmarks",
        )
    with (workspace.folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in benchmark_rows(chosen))
    questions = {each.benchmark: {"asked": len(each.items), "available": each.available} for each in chosen}
    return {"questions": questions, "left_out": left_out}
