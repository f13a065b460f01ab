"""llama.cpp's quantised files against gguf-py's own arithmetic, and what happens when llama.cpp refuses or aborts."""

import contextlib
from pathlib import Path
from typing import Any

import gguf as gguf_library
import numpy as np
import pytest
import torch
from errors_tiny import refuses
from export_tiny import divergence, llama_logits, reference_logits, token_ids, workspace, write_checkpoint
from transformers import AutoModelForCausalLM

from common.errors import Code
from common.gguf_header import read_header
from eval.runtimes.llama_process import LlamaCppRuntime, LlamaProcess
from export.gguf import COUNTED, GgufConfig, gguf, quantize


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    checkpoint = write_checkpoint(folder / "chat")
    encodings = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M")
    gguf(GgufConfig(stem="Tiny", encodings=encodings), workspace(folder / "gguf"), checkpoint)
    return folder


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf_library.GGUFReader(path).tensors}


def values(tensor: Any) -> np.ndarray[Any, Any]:
    """A tensor's weights in float32 by gguf-py."""
    if tensor.data.dtype == np.uint8:
        return gguf_library.quants.dequantize(tensor.data, tensor.tensor_type)
    return tensor.data.astype(np.float32)


def test_q8_0_bytes_equal_the_numpy_quantisers(files: Path) -> None:
    f16, q8_0 = tensors(files / "gguf/Tiny-F16.gguf"), tensors(files / "gguf/Tiny-Q8_0.gguf")
    kind = gguf_library.GGMLQuantizationType.Q8_0
    for name, tensor in q8_0.items():
        if tensor.tensor_type == kind:
            wanted = gguf_library.quants.quantize(f16[name].data.astype(np.float32), kind)
            assert np.mean(tensor.data == wanted) > 0.999, name  # ties of rounding may differ


@pytest.mark.parametrize(("encoding", "type_name", "largest_error"), [
    ("Q8_0", "Q8_0", 0.008), ("Q5_K_M", "Q5_K", 0.045), ("Q5_K_M", "Q6_K", 0.025),
    ("Q4_K_M", "Q4_K", 0.09), ("Q4_K_M", "Q6_K", 0.025),
])  # fmt: skip
def test_quantised_weights_are_near_the_original(
    files: Path, encoding: str, type_name: str, largest_error: float
) -> None:
    f16, quantised = tensors(files / "gguf/Tiny-F16.gguf"), tensors(files / f"gguf/Tiny-{encoding}.gguf")
    checked = 0
    for name, tensor in quantised.items():
        if tensor.tensor_type.name == type_name:
            original = values(f16[name])
            error = np.sqrt(np.mean((values(tensor) - original) ** 2)) / original.std()
            assert 0 < error < largest_error, name
            checked += 1
    assert checked > 2


@pytest.mark.parametrize("encoding", ["Q8_0", "Q5_K_M", "Q4_K_M"])
def test_file_runs_as_its_dequantised_weights_do(files: Path, encoding: str) -> None:
    path = files / f"gguf/Tiny-{encoding}.gguf"
    model: Any = AutoModelForCausalLM.from_pretrained(files / "chat", dtype=torch.float32)
    names = gguf_library.get_tensor_name_map(gguf_library.MODEL_ARCH.QWEN2, 2)
    held = tensors(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = held[names.get_name(name, try_suffixes=(".weight", ".bias")) or ""]
            parameter.copy_(torch.from_numpy(values(tensor).copy()).reshape(parameter.shape))
        ids = token_ids(200, below=580)
        dequantised = model(torch.tensor([ids])).logits[0]
    run = llama_logits(path, ids)
    kl, top1 = divergence(dequantised, run)
    # What remains is llama.cpp's rounding of activations to 8 bits.
    assert kl < 5e-3
    assert top1 > 0.95
    if encoding == "Q4_K_M":
        assert kl < 0.1 * divergence(reference_logits(files / "chat", ids), run)[0]


def test_rows_that_do_not_fit_fall_back_and_are_listed(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "chat", width=192, inner=320)
    encodings = ("Q4_K_M", "Q5_K_M", "Q8_0")
    facts = gguf(GgufConfig(stem="Odd", encodings=encodings), workspace(tmp_path / "gguf"), checkpoint)
    by_encoding = {file["encoding"]: file for file in facts["files"]}
    listed = {entry["tensor"]: entry for entry in by_encoding["Q4_K_M"]["fallbacks"]}
    # llama.cpp's rule: Q4_K falls back to Q5_0, Q5_K to Q5_1 and Q6_K to Q8_0 where 256 does not divide the row.
    assert listed["blk.0.ffn_up.weight"] == {"tensor": "blk.0.ffn_up.weight", "type": "Q5_0", "row_length": 192}
    assert listed["token_embd.weight"]["type"] == "Q8_0"
    assert len(listed) == 15
    assert {entry["type"] for entry in by_encoding["Q5_K_M"]["fallbacks"]} == {"Q5_1", "Q8_0"}
    assert len(by_encoding["Q5_K_M"]["fallbacks"]) == 15
    assert by_encoding["Q8_0"]["fallbacks"] == []
    assert by_encoding["Q4_K_M"]["tensor_types"].keys() == {"F32", "Q5_0", "Q8_0"}


def test_a_broken_file_is_a_named_error(files: Path, tmp_path: Path) -> None:
    whole = (files / "gguf/Tiny-F16.gguf").read_bytes()
    broken = tmp_path / "Broken-F16.gguf"
    contents: tuple[tuple[bytes, Code], ...] = (
        (b"no gguf at all", "wrong-format"),
        (whole[: len(whole) // 2], "damaged"),
        (whole[:2000], "damaged"),
    )
    for content, code in contents:
        broken.write_bytes(content)
        with refuses(code, got="Broken-F16"):
            read_header(broken)
        with refuses("wrong-format", got="Broken-F16.gguf"):
            LlamaCppRuntime(broken, repack=False)
        with refuses("failed", got="Broken-Q8_0.gguf"):
            quantize(broken, tmp_path / "Broken-Q8_0.gguf", "Q8_0", threads=1)


def test_an_abort_in_the_child_is_a_named_error(files: Path, tmp_path: Path) -> None:
    # Two equal tokens: llama.cpp asserts that they differ, which kills its process.
    held = (files / "gguf/Tiny-F16.gguf").read_bytes()
    doubled = tmp_path / "Doubled-F16.gguf"
    assert held.count(b"[PAD600]") == 1
    doubled.write_bytes(held.replace(b"[PAD600]", b"[PAD601]"))
    with refuses("failed", got="Doubled-F16.gguf") as caught:
        LlamaCppRuntime(doubled, repack=False)
    assert "SIGABRT" in caught[0].got and "GGML_ASSERT" in caught[0].got


def test_tensors_are_counted_off_as_they_are_written(files: Path, tmp_path: Path) -> None:
    logs: list[str] = []
    process = LlamaProcess(tmp_path / "Tiny-Q5_K_M.gguf")
    with contextlib.closing(process):
        paths = (str(files / "gguf/Tiny-F16.gguf"), str(tmp_path / "Tiny-Q5_K_M.gguf"))
        process.call("quantize", *paths, int(gguf_library.LlamaFileType.MOSTLY_Q5_K_M), 1, watch=logs.append)
        everything = process._logged()
    total = len(tensors(files / "gguf/Tiny-F16.gguf"))
    assert COUNTED.findall(everything)[-1] == (str(total), str(total))
    assert all(everything.startswith(log) for log in logs)
