"""The stage `benchmark_files`: the published benchmark files, each from its repository at one commit.

Where SOURCES stands in for the hub, its folder `benchmarks` is used and nothing is fetched. The registry of
`common.known_benchmarks` has the files, repositories and licences. The files are for scoring and for finding their
items in training text; they are not part of a release, and this stage does not read them.
"""

import gzip
import hashlib
import http.client
import io
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import UserError
from common.known_benchmarks import REGISTRY_FILE, sources
from common.sources import download
from common.sources.select import matches
from common.store import Workspace, stage

FILES_FOLDER = "files"
"""Inside the artifact: one folder a benchmark, paths below it as in its repository."""
MAX_ARCHIVE_BYTES = 2**29
_TIMEOUT_S = 60.0
_TOLD = ("repository", "commit", "licence", "restriction")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkFilesConfig:
    """Where from."""

    registry: Path = REGISTRY_FILE
    """Counts by its content."""
    address: str = "https://codeload.github.com"
    """What gives `<repository>/tar.gz/<commit>`."""


@stage(version=2)
def benchmark_files(config: BenchmarkFilesConfig, workspace: Workspace) -> dict[str, Any]:
    """Writes `files/<benchmark>/<path in the repository>`.

    Returns:
        `benchmarks`: {name: {repository, commit, licence, files}}, the last one their number, and `restriction` where
        a part of one has terms of its own.

    Raises:
        UserError: no network, no such commit, no such files in it, or a file with other bytes than known.
    """
    told: dict[str, Any] = {}
    for name, entry in sources(config.registry).items():
        folder = workspace.folder / FILES_FOLDER / name
        address = f"{config.address}/{entry['repository']}/tar.gz/{entry['commit']}"
        count = _extract(_archive(address, name), address, folder, entry, name)
        told[name] = {field: entry[field] for field in _TOLD if field in entry} | {"files": count}
    return {"benchmarks": told}


def _archive(address: str, name: str) -> bytes:
    """The archive; what may pass (a broken connection, a busy server) is tried again, as `common.sources` does."""
    waits_s = iter(download.WAITS_S)
    while True:
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as response:
                content: bytes = response.read(MAX_ARCHIVE_BYTES + 1)
                said = int(response.headers.get("Content-Length") or 0)
            if len(content) < min(said, MAX_ARCHIVE_BYTES + 1):  # a read of so many bytes ends early in silence
                raise http.client.IncompleteRead(content, said - len(content))
        except (OSError, ValueError, http.client.HTTPException) as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else None
            failure = type(error).__name__ if status is None else f"status {status}"
            passes = _is_remote(address) if status is None else status in download.PASSING_STATUS
            wait_s = next(waits_s, None) if passes else None
            if wait_s is None:
                raise _unavailable(name, f"no answer for {address} ({failure})") from error
            print(f"{name}: {failure}; trying again in {wait_s:g} s", file=sys.stderr, flush=True)
            time.sleep(wait_s)
            continue
        if len(content) > MAX_ARCHIVE_BYTES:
            raise _unavailable(name, f"more than {MAX_ARCHIVE_BYTES:,} bytes from {address}")
        return content


def _is_remote(address: str) -> bool:
    return not address.startswith("file:")


def _extract(archive: bytes, address: str, folder: Path, entry: dict[str, Any], name: str) -> int:
    """Writes the files that the registry names; returns how many. No file is written of an archive that is damaged."""
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
                    raise _unavailable(name, f"{path} with other bytes than those that were checked")
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                written.add(path)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _unavailable(name, f"an archive of {address} that does not read ({type(error).__name__})") from error
    missing = [pattern for pattern in entry["files"] if not any(matches(path, pattern) for path in written)]
    missing += [path for path in known if path not in written]
    if missing:
        raise _unavailable(name, f"no {', '.join(missing)} in {entry['repository']}")
    return len(written)


def _unavailable(name: str, got: str) -> UserError:
    return UserError(
        wanted=f"the files of the benchmark {name} as published",
        got=got,
        next_step="check the network and start again, or put the files into DIR/benchmarks and say SOURCES=DIR",
    )
