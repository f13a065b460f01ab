"""Whether a file ends where its format says that it ends: what can be known without reading all of it.

It looks at safetensors and Parquet, where a file that was cut short would else be noticed hours later. Other kinds are
found out by their readers.
"""

import json
from pathlib import Path

from common.errors import UserError

_PARQUET_MARK = b"PAR1"


def require_whole(path: Path) -> None:
    """UserError where a safetensors or Parquet file is cut short or is something else."""
    check = {".safetensors": _safetensors_fault, ".parquet": _parquet_fault}.get(path.suffix)
    fault = None if check is None else check(path)
    if fault is not None:
        raise UserError(
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
            return "a header that is none"
    wanted_bytes = 8 + header_bytes + max(ends, default=0)
    return None if size_bytes == wanted_bytes else f"{size_bytes:,} bytes where its header tells of {wanted_bytes:,}"


def _parquet_fault(path: Path) -> str | None:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(max(0, size_bytes - 4))
        end = file.read(4)
    whole = size_bytes >= 12 and start == end == _PARQUET_MARK
    return None if whole else f"{size_bytes:,} bytes without the mark that closes such a file"


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name of each tensor in a safetensors file, from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
