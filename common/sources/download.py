"""Downloads files of the hub and checks them; files of a data set one at a time, removed after use.

A data set may be larger than the disk, so nothing goes into the hub's cache. A broken connection or a killed run leaves
a `.part` file, and the next try resumes at its end; the library's own download would start again. `require_whole` finds
truncated local files by their format: otherwise a stage would notice them hours later.
"""

import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from common.disk import free_bytes, sha256_of
from common.errors import UserError, damaged
from common.metrics import progress
from common.sources import hub
from common.sources.names import HubFiles

WAITS_S = (1.0, 4.0, 15.0, 60.0, 240.0)
"""Between consecutive tries without progress; in sum the period of the hub's rate limit (5 minutes)."""
PASSING_STATUS = (408, 429, 500, 502, 503, 504)
"""HTTP statuses that are worth another try."""


@contextlib.contextmanager
def fetched(files: HubFiles, file: str, scratch: Path) -> Generator[Path]:
    """One of `files`, downloaded into a folder under `scratch`, which is deleted when the context ends.

    The path keeps the file's own name. After a kill, the same call resumes the download or finds it done.

    Raises:
        UserError: no network, no access, a full disk, a connection that keeps breaking, or other bytes than listed.
    """
    if file not in files.files:
        raise ValueError(f"{file} is none of the files of {files.name}")
    folder = scratch / hashlib.sha256(f"{files.name} {files.revision} {file}".encode()).hexdigest()[:16]
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
    """Makes `target` one of `files`, complete and checked; resumes a broken download of it. Errors as `fetched`."""
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
    next_step = "start again to repeat the download; if the error stays, take another revision"
    raise damaged(f"the file {file} of {files.name} as the hub lists it", difference, next_step=next_step)


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
            _require_room(part, listed.size_bytes - had_bytes, file)
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
            wanted = f"the whole file {file} of {files.name}"
            got = f"{_size_bytes(part):,} bytes of it, then {failure}, {len(WAITS_S) + 1} times in a row"
            next_step = "check the network and start again; the download resumes"
            raise UserError("no-network", wanted=wanted, got=got, next_step=next_step)
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


def _require_room(part: Path, missing_bytes: int, file: str) -> None:
    if missing_bytes > (free := free_bytes(part.parent)):
        wanted = f"{missing_bytes:,} bytes on the disk of {part.parent} for {file}"
        next_step = "free some space and start again; finished artifacts are kept"
        raise UserError("no-space", wanted=wanted, got=f"{free:,} bytes free", next_step=next_step)


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
    url, timeout = hub.file_url(files.name, files.revision, file, files.kind), constants.HF_HUB_DOWNLOAD_TIMEOUT
    # The HTTP client drops the authorization header when the hub redirects to the host of large files.
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
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


def require_whole(path: Path) -> None:
    """UserError ("damaged") for a safetensors, Parquet, gzip or gpg file that is truncated or something else.

    A gzip file is read to its end, where its checksum is: callers read all of it anyway, for its sha256. Of the others
    little is read. Truncated files of other kinds are detected by their readers.
    """
    checks = {".safetensors": _safetensors_fault, ".parquet": _parquet_fault, ".gz": _gzip_fault, ".gpg": _gpg_fault}
    fault = checks[path.suffix](path) if path.suffix in checks else None
    if fault is not None:
        raise damaged(f"a whole {path.suffix.removeprefix('.')} file {path}", fault)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file, by name, from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(_length(file, 8, "little")))
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}


def unpack_to_its_end(packed: Path | BinaryIO) -> None:
    """Reads a gzip file to its checksum; EOFError, OSError or zlib.error if it is damaged."""
    with gzip.open(packed) as file:
        while file.read(2**20):
            pass


def _safetensors_fault(path: Path) -> str | None:
    """A header's length (8 bytes, little-endian), the header as JSON, then the tensors' bytes up to the last offset."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = _length(file, 8, "little")
        if size_bytes < 8 or header_bytes > size_bytes - 8:
            return f"{size_bytes:,} bytes, which end inside its header"
        try:
            header = json.loads(file.read(header_bytes))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return "an invalid header"
    wanted_bytes = 8 + header_bytes + max(ends, default=0)
    return None if size_bytes == wanted_bytes else f"{size_bytes:,} bytes and not the {wanted_bytes:,} of its header"


def _parquet_fault(path: Path) -> str | None:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(max(0, size_bytes - 4))
        whole = size_bytes >= 12 and start == file.read(4) == b"PAR1"
    return None if whole else f"{size_bytes:,} bytes without the mark that closes such a file"


def _gzip_fault(path: Path) -> str | None:
    try:
        return unpack_to_its_end(path)
    except (EOFError, OSError, zlib.error) as error:
        return f"{path.stat().st_size:,} bytes that do not unpack ({type(error).__name__})"


def _gpg_fault(path: Path) -> str | None:
    """Packets of OpenPGP (RFC 4880, section 4.2), one after the other: the last one must end with the file."""
    size_bytes, armour = path.stat().st_size, b"-----BEGIN PGP"
    with path.open("rb") as file:
        if file.read(len(armour)) == armour:
            file.seek(max(0, size_bytes - 200))
            return None if b"-----END PGP" in file.read() else f"{size_bytes:,} bytes without the line that closes them"
        file.seek(0)
        while file.tell() < size_bytes:
            if not _skip_packet(file, size_bytes) or file.tell() > size_bytes:
                return f"{size_bytes:,} bytes, which end inside a packet or are not packets"
    return None if size_bytes else "0 bytes"


def _skip_packet(file: BinaryIO, size_bytes: int) -> bool:
    """Seeks to the end of a packet, which may be beyond the file's end; False if there is no packet."""
    tag = _length(file, 1)
    if not tag & 0x80:
        return False
    if not tag & 0x40:  # the old form: the length in 1, 2 or 4 bytes, or up to the end of the file
        length_bytes = {0: 1, 1: 2, 2: 4}.get(tag & 3)
        file.seek(size_bytes if length_bytes is None else _length(file, length_bytes), 0 if length_bytes is None else 1)
        return True
    partial = True
    while partial and file.tell() < size_bytes:
        first = _length(file, 1)
        partial = 224 <= first < 255
        if partial:
            file.seek(1 << (first & 0x1F), 1)
        elif first < 192:
            file.seek(first, 1)
        else:
            file.seek(_length(file, 4) if first == 255 else ((first - 192) << 8) + _length(file, 1) + 192, 1)
    return not partial


def _length(file: BinaryIO, count: int, order: Literal["big", "little"] = "big") -> int:
    return int.from_bytes(file.read(count), order)
