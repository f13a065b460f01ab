"""Model folders that are not what they should be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from errors_tiny import refuses
from safetensors.torch import load_file, save_file
from training_tiny import MACHINE, model_folder, tokenizer_folder

from common.checkpoint import head_weight, load_model, new_model, save_model
from common.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return model_folder(folder / "model", tokenizer_folder(folder))


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_a_tied_model_loads_without_a_stored_head(model: Path) -> None:
    assert "lm_head.weight" not in load_file(model / "model.safetensors")
    load_model(model, MACHINE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_written_once_where_it_is_the_embedding(
    model: Path, tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    config = json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": tied}
    made = new_model(config)
    save_model(made, Tokenizer.load(model), tmp_path / "saved", dtype=dtype)
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert ("lm_head.weight" in written) == (not tied)
    head = written.get("lm_head.weight", written["model.embed_tokens.weight"])
    torch.testing.assert_close(head, head_weight(made).detach().to(dtype), rtol=0, atol=0)
    load_model(tmp_path / "saved", MACHINE)


def test_missing_weights_are_never_made_up(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with refuses("damaged", wanted=str(model), got="model.layers.1.mlp.up_proj.weight"):
        load_model(model, MACHINE)


def test_weights_of_another_shape_are_refused(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(5)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with refuses("damaged"):
        load_model(model, MACHINE)


def test_a_model_that_scales_its_logits_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 30.0}))
    with refuses("unsupported", got="final_logit_softcapping 30.0"):
        load_model(model, MACHINE)


def test_a_truncated_file_is_one_line(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with refuses("damaged", got=str(model)):
        load_model(model, MACHINE)


@pytest.mark.parametrize(
    "change",
    [{"model_type": "magic"}, {"hidden_size": "wide"}, {"hidden_act": "magic"}, {"num_key_value_heads": -1}],
)
def test_a_config_that_makes_no_model_is_one_line(whole: Path, change: dict[str, object]) -> None:
    config = json.loads((whole / "config.json").read_text()) | change
    with refuses("unsupported", wanted="model_type"):
        new_model(config)
