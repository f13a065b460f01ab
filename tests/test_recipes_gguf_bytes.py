"""Computed sizes against published figures, and against files that llama.cpp has really quantised."""

import json
from pathlib import Path
from typing import Any

import pytest
from export_tiny import write_checkpoint

from common.errors import UserError
from common.gguf_header import read_header
from common.model_shape import ModelShape
from distill.initial import qwen2_config
from export.gguf import MATRIX_TYPES, quantize
from export.gguf_file import write_f16
from export.model_folder import Checkpoint
from export.vocabulary import read_vocabulary
from recipes.plan.gguf_bytes import BASE_TYPES, QWEN_VOCABULARY_BYTES, computed_tensor_bytes, tensor_type


def geometry(*, layers: int = 28, rows: int = 151_936, tied: bool = True) -> ModelShape:
    """Qwen2.5-1.5B's, or one like it."""
    text = qwen2_config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=rows,
        max_position_embeddings=32_768,
        tie_word_embeddings=tied,
    )
    return ModelShape.of(json.loads(text))


@pytest.mark.parametrize(
    ("encoding", "megabytes"), [("F16", 3087.7), ("Q8_0", 1640.6), ("Q5_K_M", 1119.1), ("Q4_K_M", 980.1)]
)
def test_the_release_has_the_published_sizes(encoding: str, megabytes: float) -> None:
    assert round(computed_tensor_bytes(geometry(), encoding) / 1e6, 1) == megabytes


def test_the_release_has_its_parameters_and_layers_of_more_bits() -> None:
    release = geometry()
    assert release.parameters() == 1_543_714_304
    shapes = dict(release.tensors())
    more = [
        layer
        for layer in range(28)
        if tensor_type(release, "Q4_K_M", name := f"blk.{layer}.ffn_down.weight", shapes[name]) == "Q6_K"
    ]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]


def test_a_head_of_its_own_takes_the_better_type() -> None:
    untied = geometry(tied=False)
    shapes = dict(untied.tensors())
    assert tensor_type(untied, "Q4_K_M", "output.weight", shapes["output.weight"]) == "Q6_K"
    assert tensor_type(untied, "Q4_K_M", "token_embd.weight", shapes["token_embd.weight"]) == "Q4_K"


@pytest.mark.parametrize(
    "shape",
    [
        {"num_hidden_layers": 9},
        {"width": 192, "inner": 320, "tie_word_embeddings": False},
        {"inner": 528},
    ],
    ids=["rows of 256", "rows of 32, own head", "rows of 16"],
)
def test_computed_bytes_are_those_of_llama_cpp(tmp_path: Path, shape: dict[str, Any]) -> None:
    """Type for type and byte for byte."""
    checkpoint = write_checkpoint(tmp_path / "chat", **shape)
    source = Checkpoint(checkpoint)
    f16 = tmp_path / "F16.gguf"
    write_f16(source, read_vocabulary(checkpoint, rows=source.rows), f16, name="Tiny")
    made = ModelShape.of(json.loads((checkpoint / "config.json").read_text()))
    for encoding in BASE_TYPES:
        path = tmp_path / f"{encoding}.gguf"
        if encoding != "F16":
            quantize(f16, path, encoding, threads=1)
        contents = read_header(path)
        found = {name: (tensor.type, tensor.shape) for name, tensor in contents.tensors.items()}
        assert found == {name: (tensor_type(made, encoding, name, shape), shape) for name, shape in made.tensors()}, (
            encoding
        )
        assert sum(tensor.bytes for tensor in contents.tensors.values()) == computed_tensor_bytes(made, encoding)


def test_every_encoding_that_is_exported_is_computed() -> None:
    assert set(MATRIX_TYPES) == set(BASE_TYPES)


@pytest.mark.shared_data
def test_size_of_qwens_vocabulary(shared_data: Path) -> None:
    model = json.loads((shared_data / "qwen2.5_tokenizer/tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    strings = [*model["vocab"], *merges]
    assert sum(8 + len(text.encode()) for text in strings) + 4 * len(model["vocab"]) == QWEN_VOCABULARY_BYTES


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(UserError, match="IQ4_XS"):
        computed_tensor_bytes(geometry(), "IQ4_XS")
    with pytest.raises(UserError, match="bert"):
        ModelShape.of({"model_type": "bert"})
    with pytest.raises(UserError, match="hidden_size"):
        ModelShape.of({"model_type": "llama"})
