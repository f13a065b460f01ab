"""Downloads files of the hub and checks them; files of a data set one at a time, removed after use.

A data set may be larger than the disk, so nothing goes into the hub's cache. A broken connection or a killed run leaves
a `.part` file, and the next try resumes at its end; the library's own download would start again. Independent of
formats: a file is bytes with a size and, if the hub lists one, a sha256.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from common.disk import free_bytes, sha256_of
from common.errors import UserError
from common.metrics import progress
from common.sources import hub
from common.sources.names import HubFiles

WAITS_S = (1.0, 4.0, 15.0, 60.0, 240.0)
"""Between consecutive tries without progress; in sum the period of the hub's rate limit (5 minutes)."""
PASSING_STATUS = (408, 429, 500, 502, 503, 504)
"""HTTP statuses that are worth another try."""


@contextlib.contextmanager
def fetched(files: HubFiles, file: str, scratch: Path) -> Generator[Path, None, None]:
    """One of `files`, downloaded into a folder under `scratch`, which is deleted when the context ends.

    The path keeps the file's own name. After a kill, the same call resumes the download or finds it done.

    Raises:
        UserError: no network, no access, a full disk, a connection that keeps breaking, or other bytes than listed.
    """
    if file not in files.files:
        raise ValueError(f"{file} is none of the files of {files.name}")
    key = hashlib.sha256(f"{files.name} {files.revision} {file}".encode()).hexdigest()[:16]
    folder = scratch / key
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / PurePosixPath(file).name
    if whole.exists():
        os.replace(whole, _part(whole))  # from a run that was killed while reading: checked again
    fetch(files, file, whole)
    try:
        yield whole
    finally:
        shutil.rmtree(folder)


def fetch(files: HubFiles, file: str, target: Path) -> None:
    """Makes `target` one of `files`, complete and checked; resumes a killed or broken download of it.

    Raises:
        UserError: as `fetched`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with hub.explained(files.name, files.revision, files.kind, is_resolved=True):
        _download(files, file, _part(target))
    os.replace(_part(target), target)


def _part(whole: Path) -> Path:
    return whole.with_name(whole.name + ".part")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listed:
    """What the hub lists for a file."""

    size_bytes: int
    sha256: str | None


def _download(files: HubFiles, file: str, part: Path) -> None:
    """Makes `part` the whole file. An earlier run may have left a damaged part: then a second time from the start."""
    difference = None
    for _ in range(2 if part.exists() else 1):
        difference = _difference(part, _bring(files, file, part))
        if difference is None:
            return
        part.unlink()
    raise UserError(
        "damaged",
        wanted=f"the file {file} of {files.name} as the hub lists it",
        got=str(difference),
        next_step="start again to repeat the download; if the error stays, take another revision",
    )


def _difference(part: Path, listed: _Listed) -> str | None:
    if (size_bytes := _size_bytes(part)) != listed.size_bytes:
        return f"{size_bytes:,} bytes, not {listed.size_bytes:,}"
    if listed.sha256 is not None and sha256_of(part) != listed.sha256:
        return "bytes with another sha256"
    return None


def _bring(files: HubFiles, file: str, part: Path) -> _Listed:
    """Appends to `part` until it has the listed size; tries again after transient failures."""
    waits_s = iter(WAITS_S)
    while True:
        had_bytes = _size_bytes(part)
        try:
            listed = _listed(files, file)
            _require_room(part, listed, file)
            _stream(files, file, part, listed)
            if _size_bytes(part) >= listed.size_bytes:
                return listed
            failure = "the connection ended early"
        except hub.transport_error() as error:
            status = hub.status_of(error)
            if status is not None and status not in PASSING_STATUS:
                raise
            failure = type(error).__name__ if status is None else f"status {status}"
        if _size_bytes(part) > had_bytes:
            waits_s = iter(WAITS_S)
        wait_s = next(waits_s, None)
        if wait_s is None:
            raise UserError(
                "no-network",
                wanted=f"the whole file {file} of {files.name}",
                got=f"{_size_bytes(part):,} bytes of it, then {failure}, {len(WAITS_S) + 1} times in a row",
                next_step="check the network and start again; the download resumes",
            )
        print(f"{file}: {failure}; trying again in {wait_s:g} s", file=sys.stderr, flush=True)
        time.sleep(wait_s)


def _listed(files: HubFiles, file: str) -> _Listed:
    from huggingface_hub import constants, get_hf_file_metadata

    metadata = get_hf_file_metadata(
        hub.file_url(files.name, files.revision, file, files.kind),
        token=False,  # it is in the headers already
        headers=hub.request_headers(),
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    if metadata.commit_hash is None or metadata.size is None:
        raise hub.no_hub(files.name, files.kind)
    # A large file's tag is its sha256; that of a small one is git's own hash.
    tag = metadata.etag or ""
    return _Listed(size_bytes=metadata.size, sha256=tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None)


def _require_room(part: Path, listed: _Listed, file: str) -> None:
    missing_bytes = listed.size_bytes - _size_bytes(part)
    if missing_bytes > (free := free_bytes(part.parent)):
        raise UserError(
            "no-space",
            wanted=f"{missing_bytes:,} bytes on the disk of {part.parent} for {file}",
            got=f"{free:,} bytes free",
            next_step="free some space and start again; finished artifacts are kept",
        )


def _stream(files: HubFiles, file: str, part: Path, listed: _Listed) -> None:
    """One request for the missing bytes of `part`; it may end early."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    start_bytes = _size_bytes(part)
    if start_bytes >= listed.size_bytes > 0:
        return
    headers = hub.request_headers()
    if start_bytes > 0:
        headers["Range"] = f"bytes={start_bytes}-"
    # The HTTP client drops the authorization header when the hub redirects to the host of large files.
    request = get_session().stream(
        "GET",
        hub.file_url(files.name, files.revision, file, files.kind),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    )
    with request as response:
        hf_raise_for_status(response)
        resumes = response.status_code == 206  # with 200 the whole file comes once more
        with (
            part.open("ab" if resumes else "wb") as out,
            progress(listed.size_bytes, label=PurePosixPath(file).name, unit="bytes") as bar,
        ):
            bar.update(start_bytes if resumes else 0)
            for block in response.iter_bytes():
                out.write(block)
                bar.update(len(block))
                if out.tell() > listed.size_bytes:
                    return


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
