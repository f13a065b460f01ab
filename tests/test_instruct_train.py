"""Instruction tuning: the mask decides what is learnt, replay, resume."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors_tiny import refuses
from safetensors.torch import load_file
from training_tiny import MACHINE, NAMES, THINGS, corpus_folder, model_folder, tokenizer_folder

from common.checkpoint import load_model
from common.optim import OptimConfig
from common.packing import PackedRows, write_packed
from common.store import Workspace, run_alone
from common.tokenizer import Tokenizer
from common.training import mean_loss, row_losses
from common.training_state import CheckpointManager
from instruct.train import InstructConfig, instruct

CONFIG = InstructConfig(
    optim=OptimConfig(learning_rate=1e-2),
    steps=8,
    rows_per_step=2,
    micro_batch_rows=2,
    validate_every=4,
    checkpoint_every=3,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = tokenizer_folder(folder)
    return {
        "corpus": corpus_folder(folder / "corpus", tokenizer),
        "base": model_folder(folder / "base", tokenizer),
        "conversations": _conversations(folder / "conversations", tokenizer),
    }


def _conversations(folder: Path, tokenizer: Path) -> Path:
    loaded = Tokenizer.load(tokenizer)
    rendered = [
        loaded.render(
            [{"role": "user", "content": f"{name}の名物は？"}, {"role": "assistant", "content": f"{thing}です。"}]
        )
        for name, thing in zip(NAMES, THINGS, strict=True)
    ]
    for split in ("train", "validation"):
        rows = [(ids, [100 * mark for mark in mask]) for ids, mask in rendered]
        write_packed(folder / "packed" / split, rows, sequence_tokens=96, tokenizer=loaded)
    return folder


def test_the_answers_are_learnt_and_prompts_do_not_count(tiny: dict[str, Path], tmp_path: Path) -> None:
    run_alone(instruct, replace(CONFIG, steps=80), tmp_path / "out", tiny["base"], tiny["conversations"], None)
    rows = PackedRows(tiny["conversations"] / "packed" / "validation")
    model = load_model(tmp_path / "out", MACHINE)
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert mean_loss(row_losses(model, rows, MACHINE, vocab_size=tokenizer.size)) < 1.0
    messages = [
        {"role": "user", "content": f"{NAMES[0]}の名物は？"},
        {"role": "assistant", "content": f"{THINGS[0]}です。"},
    ]
    ids, mask = tokenizer.render(messages)
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    chances = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
    supervised = torch.tensor(mask[1:]) == 1
    assert chances[supervised].mean() > -1.0, "the answer is learnt"
    assert chances[~supervised].mean() < -3.0, "what stands before it is not"


def test_replay_needs_both_the_rows_and_the_corpus(tiny: dict[str, Path], tmp_path: Path) -> None:
    workspace = Workspace(folder=tmp_path, machine=MACHINE)
    with refuses("contradiction", wanted="replay", got=str(tiny["corpus"])):
        instruct(CONFIG, workspace, tiny["base"], tiny["conversations"], tiny["corpus"])
    with refuses("contradiction", wanted="replay", got="2 rows a step, corpus None"):
        instruct(replace(CONFIG, replay_rows_per_step=2), workspace, tiny["base"], tiny["conversations"], None)


def test_text_is_not_tuned_on_as_if_it_were_answers(tiny: dict[str, Path], tmp_path: Path) -> None:
    corpus = shutil.copytree(tiny["corpus"], tmp_path / "corpus")
    (corpus / "data_card.json").write_text(json.dumps({"sources": []}))
    with refuses("wrong-format", wanted="conversations", got=str(corpus)):
        instruct(CONFIG, Workspace(folder=tmp_path, machine=MACHINE), tiny["base"], corpus, None)


def test_replay_keeps_the_text_better(tiny: dict[str, Path], tmp_path: Path) -> None:
    rows = PackedRows(tiny["corpus"] / "packed" / "test")
    losses = []
    for name, replayed in (("with", 4), ("without", 0)):
        config = replace(CONFIG, steps=30, replay_rows_per_step=replayed)
        corpus = tiny["corpus"] if replayed else None
        run_alone(instruct, config, tmp_path / name, tiny["base"], tiny["conversations"], corpus)
        size = Tokenizer.load(tmp_path / name).size
        losses.append(mean_loss(row_losses(load_model(tmp_path / name, MACHINE), rows, MACHINE, vocab_size=size)))
    assert losses[0] < losses[1] - 0.5


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", [3, 6])
def test_an_interrupted_run_ends_with_the_same_weights(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    inputs = (tiny["base"], tiny["conversations"], tiny["corpus"])
    config = replace(CONFIG, replay_rows_per_step=1)
    run_alone(instruct, config, tmp_path / "whole", *inputs)
    original = CheckpointManager.save

    def save_and_stop(self: CheckpointManager, step: int, values: dict[str, object]) -> None:
        original(self, step, values)
        if step == stop_at:
            raise _Stopped

    monkeypatch.setattr(CheckpointManager, "save", save_and_stop)
    with pytest.raises(_Stopped):
        run_alone(instruct, config, tmp_path / "stopped", *inputs)
    monkeypatch.setattr(CheckpointManager, "save", original)
    run_alone(instruct, config, tmp_path / "stopped", *inputs)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    facts = json.loads((tmp_path / "stopped" / "manifest.json").read_text())["facts"]
    assert facts["steps"] == 8
