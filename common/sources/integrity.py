"""Detects truncated files by their format: otherwise a stage would notice them hours later.

Of safetensors, Parquet and OpenPGP files little is read. A gzip file is read to its end, where its checksum is: callers
read all of it anyway, for its sha256. Truncated files of other kinds are detected by their readers.
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError

_PARQUET_MARK = b"PAR1"
_ARMOUR, _ARMOUR_END = b"-----BEGIN PGP", b"-----END PGP"
_BLOCK_BYTES = 2**20


def require_whole(path: Path) -> None:
    """UserError ("damaged") for a safetensors, Parquet, gzip or gpg file that is truncated or something else."""
    checks = {".safetensors": _safetensors_fault, ".parquet": _parquet_fault, ".gz": _gzip_fault, ".gpg": _gpg_fault}
    check = checks.get(path.suffix)
    fault = None if check is None else check(path)
    if fault is not None:
        raise UserError(
            "damaged",
            wanted=f"a whole {path.suffix.removeprefix('.')} file {path}",
            got=fault,
            next_step="copy or download the file again",
        )


def _safetensors_fault(path: Path) -> str | None:
    """A header's length (8 bytes, little-endian), the header as JSON, then the tensors' bytes up to the last offset."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
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
        end = file.read(4)
    whole = size_bytes >= 12 and start == end == _PARQUET_MARK
    return None if whole else f"{size_bytes:,} bytes without the mark that closes such a file"


def unpack_to_its_end(packed: Path | BinaryIO) -> None:
    """Reads a gzip file to its checksum; EOFError, OSError or zlib.error if it is damaged."""
    with gzip.open(packed) as file:
        while file.read(_BLOCK_BYTES):
            pass


def _gzip_fault(path: Path) -> str | None:
    try:
        unpack_to_its_end(path)
    except (EOFError, OSError, zlib.error) as error:
        return f"{path.stat().st_size:,} bytes that do not unpack ({type(error).__name__})"
    return None


def _gpg_fault(path: Path) -> str | None:
    """Packets of OpenPGP (RFC 4880, section 4.2), one after the other: the last one must end with the file."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_ARMOUR)) == _ARMOUR:
            file.seek(max(0, size_bytes - 200))
            return None if _ARMOUR_END in file.read() else f"{size_bytes:,} bytes without the line that closes them"
        file.seek(0)
        while file.tell() < size_bytes:
            if not _skip_packet(file, size_bytes) or file.tell() > size_bytes:
                return f"{size_bytes:,} bytes, which end inside a packet or are not packets"
    return None if size_bytes else "0 bytes"


def _skip_packet(file: BinaryIO, size_bytes: int) -> bool:
    """Seeks to the end of a packet, which may be beyond the file's end; False if there is no packet."""
    tag = int.from_bytes(file.read(1))
    if not tag & 0x80:
        return False
    if not tag & 0x40:  # the old form: the length in 1, 2 or 4 bytes, or up to the end of the file
        length_bytes = {0: 1, 1: 2, 2: 4}.get(tag & 3)
        file.seek(size_bytes if length_bytes is None else _length(file, length_bytes), 0 if length_bytes is None else 1)
        return True
    partial = True
    while partial and file.tell() < size_bytes:
        first = int.from_bytes(file.read(1))
        partial = 224 <= first < 255
        if partial:
            file.seek(1 << (first & 0x1F), 1)
        elif first < 192:
            file.seek(first, 1)
        else:
            file.seek(_length(file, 4) if first == 255 else ((first - 192) << 8) + _length(file, 1) + 192, 1)
    return not partial


def _length(file: BinaryIO, count: int) -> int:
    return int.from_bytes(file.read(count))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file, by name, from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
