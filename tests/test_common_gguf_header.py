"""Headers of GGUF files: equal to the gguf library's own reader, and no damaged file that is not one clear error."""

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Code, UserError
from common.gguf_header import read_header

TYPES = [
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.Q8_0,
    gguf.GGMLQuantizationType.Q4_K,
    gguf.GGMLQuantizationType.Q6_K,
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FIELDS = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    st.lists(TEXTS, min_size=1, max_size=5),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5),
)


def write(
    path: Path, fields: dict[str, Any], tensors: list[gguf.GGMLQuantizationType], *, endian: str = "little"
) -> None:
    writer = gguf.GGUFWriter(path, "qwen2", endianess=gguf.GGUFEndian[endian.upper()])
    for name, value in fields.items():
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case _:
                writer.add_array(name, value)
    for place, kind in enumerate(tensors):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        columns = 256
        data = np.zeros((place + 1, columns // block * size), np.uint8)
        writer.add_tensor(f"blk.{place}.weight", data, raw_shape=data.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_the_library_reads(path: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {
        tensor.name: (tensor.tensor_type.name, tuple(int(side) for side in reversed(tensor.shape)), int(tensor.n_bytes))
        for tensor in reader.tensors
    }
    return fields, tensors


@given(
    fields=st.dictionaries(st.from_regex(r"x\.[a-z]{1,8}", fullmatch=True), FIELDS, max_size=6),
    tensors=st.lists(st.sampled_from(TYPES), max_size=4),
)
def test_as_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], tensors: Any
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    write(path, fields, tensors)
    header = read_header(path)
    expected, places = as_the_library_reads(path)
    assert header.fields == expected
    assert {name: (place.type, place.shape, place.bytes) for name, place in header.tensors.items()} == places
    path.unlink()


def test_whatever_is_damaged_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write(path, {"x.a": ["あ", "い"] * 20, "x.b": 7, "x.c": [1, 2, 3]}, TYPES)
    whole = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(600):
        damaged = bytearray(whole)
        if generator.random() < 0.4:
            del damaged[generator.randrange(len(damaged)) :]
        else:
            for _ in range(generator.randrange(1, 4)):
                damaged[generator.randrange(min(900, len(damaged)))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_header(path)
        except UserError as error:
            refused += 1
            assert error.code in ("damaged", "wrong-format") and str(path) in error.got
    assert refused > 300, "most damage is noticed"


@pytest.mark.parametrize(
    ("content", "code", "got"),
    [
        (b"", "damaged", ""),
        (b"GGUF", "damaged", ""),
        (b"PK\3\4" + bytes(100), "wrong-format", "magic"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(100), "wrong-format", "version 1, where 2 and 3"),
    ],
)
def test_what_is_no_gguf_file(tmp_path: Path, content: bytes, code: Code, got: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with refuses(code, got=got) as caught:
        read_header(path)
    assert str(path) in caught[0].got


def test_a_missing_file_and_another_byte_order(tmp_path: Path) -> None:
    with refuses("not-found", got="none.gguf"):
        read_header(tmp_path / "none.gguf")
    write(tmp_path / "big.gguf", {"x.a": 1}, [], endian="big")
    with refuses("wrong-format", got="version"):
        read_header(tmp_path / "big.gguf")
