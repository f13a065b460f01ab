"""Folders that are no whole model in plain weights: the same refusal in training, evaluation and export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from errors_tiny import refuses
from export_tiny import CPU, write_checkpoint, write_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from common.checkpoint import load_model
from common.errors import Code
from common.weights import HEAD, weight_files
from export.model_folder import Checkpoint


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def quantised(method: str) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, quantization_config={"quant_method": method, "bits": 4})


def compressed(folder: Path) -> None:
    edit_config(folder, compression_config={"quant_method": "compressed-tensors"})


def adapter(folder: Path) -> None:
    described = {"peft_type": "LORA", "base_model_name_or_path": "someone/base"}
    (folder / "adapter_config.json").write_text(json.dumps(described))


def two_heads(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state[HEAD] = state["model.embed_tokens.weight"] + 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        *((quantised(method), "unsupported", method) for method in ("bitsandbytes", "gptq", "awq", "fp8")),
        (compressed, "unsupported", "compressed-tensors"),
        (adapter, "unsupported", "LORA, for someone/base"),
        (two_heads, "contradiction", "two different tensors"),
    ],
)
@pytest.mark.parametrize("read", [lambda folder: load_model(folder, CPU), Checkpoint])
def test_what_is_no_whole_model_is_refused_by_every_reader(
    tmp_path: Path, change: Callable[[Path], None], code: Code, said: str, read: Callable[[Path], Any]
) -> None:
    folder = write_checkpoint(tmp_path / "model", width=64, inner=64)
    read(folder)
    change(folder)
    with refuses(code, got=said) as caught:
        read(folder)
    assert str(folder) in caught[0].got


def test_one_file_goes_before_an_old_index_in_every_reader(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", width=64, inner=64, shard="60KB")
    shards = weight_files(folder)
    assert len(set(shards.values())) > 1
    state = {name: load_file(file)[name] + 1 for name, file in shards.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert set(weight_files(folder).values()) == {folder / "model.safetensors"}
    loaded = load_model(folder, CPU).state_dict()
    checkpoint = Checkpoint(folder)
    for name in checkpoint.names():
        assert torch.equal(checkpoint.read(name).float(), loaded[name]) and torch.equal(loaded[name], state[name])


def test_a_head_with_a_bias_is_one_line(tmp_path: Path) -> None:
    rows = write_tokenizer(tmp_path)
    config = AutoConfig.for_model(
        "phi", hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=rows
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with refuses("unsupported", got="a head with a bias"):
        load_model(tmp_path, CPU)


def test_a_damaged_config_is_one_line(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", width=64, inner=64)
    (folder / "config.json").write_text('{"model_type": ')
    with refuses("damaged", got="config.json"):
        load_model(folder, CPU)
