"""Which model folders an export accepts, and the one line that names what is wrong with the others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors_tiny import refuses
from export_tiny import new_model, write_checkpoint
from safetensors.torch import load_file, save_file

from common.errors import Code
from export.model_folder import Checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "chat")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_tensor_comes_out_once_and_unchanged(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    stored = load_file(folder / "model.safetensors")
    names = checkpoint.names()
    assert sorted(names) == sorted(stored)
    assert names[0] == "model.embed_tokens.weight"
    assert names[-1] == "model.norm.weight"
    for name in names:
        assert checkpoint.shape(name) == tuple(stored[name].shape)
        assert torch.equal(checkpoint.read(name), stored[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "value", [65504.0, 65519.0, 65520.0, -65519.0, -65520.0, 1e-9, float("inf"), float("-inf"), float("nan")]
)
def test_a_weight_is_accepted_where_its_float16_is_finite(value: float, dtype: torch.dtype, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    tensors["model.norm.weight"][3] = value
    save_file(tensors, folder / "model.safetensors")
    checkpoint, stored = Checkpoint(folder), tensors["model.norm.weight"]
    with np.errstate(over="ignore"):
        fits = np.isfinite(stored.double().numpy().astype(np.float16)).all()
    if fits:
        assert torch.equal(checkpoint.read("model.norm.weight"), stored)
    else:
        with refuses("not-finite", wanted="65504", got="model.norm.weight"):
            checkpoint.read("model.norm.weight")


@pytest.mark.parametrize("rope_type", ["default", "linear", "llama3", "yarn"])
def test_rope_equals_the_models_own(rope_type: str, tmp_path: Path) -> None:
    rope = {"rope_type": rope_type, "rope_theta": 5e4, "factor": 4.0, "original_max_position_embeddings": 128}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope_type == "llama3" else {}
    if rope_type == "default":
        rope = {"rope_type": "default", "rope_theta": 5e4}
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "chat", "llama", rope_parameters=rope))
    model: Any = new_model("llama", rows=8, rope_parameters=rope)
    found = checkpoint.rope()
    assert torch.allclose(found.inverse_frequencies, model.model.rotary_emb.inv_freq, rtol=1e-6)
    assert found.attention_factor == pytest.approx(model.model.rotary_emb.attention_scaling)


def test_old_style_rope_settings_are_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 123456.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (folder / "config.json").write_text(json.dumps(config))
    rope = Checkpoint(folder).rope()
    assert (rope.type, rope.theta, rope.parameters["factor"]) == ("linear", 123456.0, 2.0)


@pytest.mark.parametrize(
    ("changes", "code", "wanted", "got"),
    [
        ({"architectures": ["Qwen2MoeForCausalLM"]}, "unsupported", "architecture", "Qwen2MoeForCausalLM"),
        ({"architectures": None}, "unsupported", "architecture", "none"),
        ({"hidden_act": "gelu"}, "unsupported", "hidden_act: silu", "gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "unsupported",
            "rope_type",
            "dynamic",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0, "layer_types": None},
            "unsupported",
            "attention",
            "sliding_attention",
        ),
        ({"vocab_size": 600}, "mismatch", "vocab_size = 600", " rows"),
        (
            {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
            "mismatch",
            "Qwen2ForCausalLM",
            "missing model.layers.2",
        ),
        (
            {"num_hidden_layers": 1, "layer_types": ["full_attention"]},
            "mismatch",
            "Qwen2ForCausalLM",
            "unknown model.layers.1",
        ),
        ({"tie_word_embeddings": False}, "mismatch", "Qwen2ForCausalLM", "missing lm_head.weight"),
    ],
)
def test_config_that_cannot_be_exported_is_refused(
    folder: Path, changes: dict[str, Any], code: Code, wanted: str, got: str
) -> None:
    change_config(folder, **changes)
    with refuses(code, wanted=wanted, got=got):
        Checkpoint(folder)


def test_files_that_are_absent_or_broken_are_named(folder: Path) -> None:
    with refuses("not-found", got="config.json in"):
        Checkpoint(folder / "nowhere")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    with refuses("damaged", got="model.safetensors"):
        Checkpoint(folder)
    weights.unlink()
    with refuses("not-found", wanted="model.safetensors", got=str(folder)):
        Checkpoint(folder)
    weights.write_bytes(whole)
    (folder / "config.json").write_text("{")
    with refuses("wrong-format", wanted="config.json", got=str(folder)):
        Checkpoint(folder)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "chat", shard="500KB")
    (folder / "model-00002-of-00013.safetensors").unlink(missing_ok=True)
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink(missing_ok=True)
    with refuses("not-found", wanted=lost.name):
        Checkpoint(folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    with refuses("unsupported", got=name):
        Checkpoint(folder)
