"""The header of a GGUF file: its fields and the places of its tensors, read in a fraction of a second, without weights.

The gguf library's own reader makes an array of every string; for a vocabulary of 151,665 tokens and as many merges that
takes 13 seconds a file. Layout: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from common.errors import Code, UserError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_DEFAULT_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_SCALARS = {
    GGUFValueType.UINT8: "<B", GGUFValueType.UINT16: "<H", GGUFValueType.UINT32: "<I", GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT8: "<b", GGUFValueType.INT16: "<h", GGUFValueType.INT32: "<i", GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT32: "<f", GGUFValueType.FLOAT64: "<d", GGUFValueType.BOOL: "<?",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlace:
    """One tensor of a file."""

    type: str
    """Its encoding, as ggml calls it."""
    shape: tuple[int, ...]
    """The row length last."""
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """What comes before the weights, and the size of the whole file."""

    fields: dict[str, Any]
    """Numbers, strings, booleans, and lists of these, by name."""
    tensors: dict[str, TensorPlace]
    """In the file's order."""
    bytes: int
    """Of the file."""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def tensor_types(self) -> dict[str, int]:
        """Number of tensors of each encoding."""
        return dict(sorted(Counter(tensor.type for tensor in self.tensors.values()).items()))


class _Fault(Exception):
    """What is wrong with a file: a code and a text."""


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file, whose length is checked against it.

    Raises:
        UserError: the file is absent, not a GGUF file of a known version, or cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).header()
    except (OSError, ValueError, struct.error, _Fault) as error:
        code: Code = "not-found" if isinstance(error, FileNotFoundError) else "damaged"
        text: object = error
        if isinstance(error, _Fault):
            code, text = error.args
        wanted, next_step = "a whole GGUF file", "export or download it again"
        raise UserError(code, wanted=wanted, got=f"{path}: {text}", next_step=next_step) from error


class _Reader:
    """Reads the bytes from start to end, once."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._place = data, 0

    def header(self) -> GgufHeader:
        if self._data[:4] != _MAGIC:
            raise _Fault("wrong-format", "no GGUF magic at its start")
        self._place = 4
        version = self._number("<I")
        if version not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            raise _Fault("wrong-format", f"GGUF version {version}, where {known} are known")
        num_tensors, num_fields = self._number("<Q"), self._number("<Q")
        fields: dict[str, Any] = {}
        for _ in range(num_fields):
            name = self._text()
            fields[name] = self._value(self._kind())
        places = [self._tensor() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise _Fault("damaged", f"general.alignment {alignment!r}")
        start = math.ceil(self._place / alignment) * alignment
        for name, tensor, offset in places:
            if start + offset + tensor.bytes > len(self._data):
                raise _Fault("damaged", f"the file ends inside or before the tensor {name}")
        tensors = {name: tensor for name, tensor, _ in places}
        if len(tensors) < len(places):
            raise _Fault("damaged", "two tensors of one name")
        return GgufHeader(fields=fields, tensors=tensors, bytes=len(self._data))

    def _number(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self._data, self._place)
        self._place += struct.calcsize(layout)
        return value

    def _text(self) -> str:
        length = self._number("<Q")
        end = self._place + length
        if end > len(self._data):
            raise _Fault("damaged", "the file ends inside a text of its header")
        raw = self._data[self._place : end]
        self._place = end
        # Tokens of a byte-level vocabulary are text; others may not be, which is no reason to refuse the file.
        return raw.decode("utf-8", errors="replace")

    def _kind(self) -> GGUFValueType:
        return GGUFValueType(self._number("<I"))

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text()
        if kind != GGUFValueType.ARRAY:
            return self._number(_SCALARS[kind])
        item, count = self._kind(), self._number("<Q")
        if count > len(self._data) - self._place:
            raise _Fault("damaged", "a list longer than the file")
        if item not in _SCALARS:
            return [self._value(item) for _ in range(count)]
        layout = f"<{count}{_SCALARS[item][1]}"
        values = struct.unpack_from(layout, self._data, self._place)
        self._place += struct.calcsize(layout)
        return list(values)

    def _tensor(self) -> tuple[str, TensorPlace, int]:
        name, dimensions = self._text(), self._number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise _Fault("damaged", f"{dimensions} dimensions of the tensor {name}")
        sizes = [self._number("<Q") for _ in range(dimensions)]
        kind, offset = GGMLQuantizationType(self._number("<I")), self._number("<Q")
        block, block_bytes = GGML_QUANT_SIZES[kind]
        tensor_bytes = math.prod(sizes) // block * block_bytes
        return name, TensorPlace(type=kind.name, shape=tuple(reversed(sizes)), bytes=tensor_bytes), offset
