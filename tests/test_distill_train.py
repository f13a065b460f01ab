"""The distillation loop: resume, packing, the teacher, what it refuses."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_tiny import MACHINE, corpus_folder, model_folder, tokenizer_folder
from transformers import AutoModelForCausalLM

from common.checkpoint import hidden_states, load_model
from common.errors import UserError
from common.optim import OptimConfig
from common.packing import PackedRows, rows_of_step, write_packed
from common.store import Workspace, run_alone
from common.tokenizer import Tokenizer
from common.training import mean_loss, row_losses
from distill.initial import InitConfig, previous_token_biases, qwen2_config
from distill.taid import TaidConfig
from distill.train import DistillConfig, distill


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tokenizer_folder(folder)
    return {
        "tokenizer": tokenizer,
        "corpus": corpus_folder(folder / "corpus", tokenizer),
        "student": model_folder(folder / "student", tokenizer),
        "teacher": model_folder(folder / "teacher", tokenizer, hidden=48, seed=1, rows=448),
    }


CONFIG = DistillConfig(
    method="taid",
    taid=TaidConfig(alpha=0.1),
    optim=OptimConfig(matrices="muon", learning_rate=1e-2),
    steps=12,
    rows_per_step=3,
    micro_batch_rows=2,
    validate_every=4,
    checkpoint_every=2,
)


def _run(config: DistillConfig, out: Path, tiny: dict[str, Path], *, teacher: bool = True) -> dict[str, torch.Tensor]:
    run_alone(distill, config, out, tiny["corpus"], tiny["student"], tiny["teacher"] if teacher else None)
    return load_file(out / "model.safetensors")


def test_training_lowers_the_held_out_loss_and_writes_a_loadable_folder(tiny: dict[str, Path], tmp_path: Path) -> None:
    config = replace(CONFIG, method="cross_entropy", steps=30)
    _run(config, tmp_path / "out", tiny, teacher=False)
    rows = PackedRows(tiny["corpus"] / "packed" / "test")
    size = Tokenizer.load(tiny["tokenizer"]).size
    losses = [
        mean_loss(row_losses(load_model(folder, MACHINE), rows, MACHINE, vocabulary=size))
        for folder in (tiny["student"], tmp_path / "out")
    ]
    assert losses[1] < losses[0] - 1.0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["facts"]["steps"] == 30 and manifest["facts"]["tokens"] > 0
    assert not (tmp_path / "out" / "scratch").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)


def test_micro_batches_change_nothing_but_rounding(tiny: dict[str, Path], tmp_path: Path) -> None:
    logged: list[list[float]] = []
    for name, rows in (("one", 3), ("two", 1)):
        _run(replace(CONFIG, micro_batch_rows=rows, steps=3), tmp_path / name, tiny)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logged.append([line[key] for line in lines if "loss" in line for key in ("loss", "gradient_norm", "kl")])
    assert logged[0] == pytest.approx(logged[1], rel=1e-3)
    assert logged[0][:3] == pytest.approx(logged[1][:3], rel=1e-5), "the first step has the same weights"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_distill_train as here
import common.training as training
saves = 0
original = training.Keeper.save
def save(self, step, values):
    global saves
    original(self, step, values)
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
training.Keeper.save = save
import distill.train
tiny = {{name: Path(path) for name, path in {tiny!r}.items()}}
here._run(here.CONFIG, Path({out!r}), tiny)
"""


@pytest.mark.parametrize("step", [2, 6, 12])
def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(tiny: dict[str, Path], tmp_path: Path, step: int) -> None:
    whole = _run(CONFIG, tmp_path / "whole", tiny)
    code = KILLED.format(
        tests=str(Path(__file__).parent),
        step=step,
        tiny={name: str(path) for name, path in tiny.items()},
        out=str(tmp_path / "killed"),
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert not (tmp_path / "killed").exists()
    started = time.time()
    resumed = _run(CONFIG, tmp_path / "killed", tiny)
    assert time.time() > started
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    metrics = [(tmp_path / folder / "metrics.jsonl").read_text().splitlines() for folder in ("whole", "killed")]
    steps = [[json.loads(line)["step"] for line in lines] for lines in metrics]
    assert steps[0] == steps[1], "no step is logged twice"


def test_t_rises_over_the_run_and_is_logged(tiny: dict[str, Path], tmp_path: Path) -> None:
    _run(CONFIG, tmp_path / "out", tiny)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    t = [line["t"] for line in lines if "t" in line]
    assert len(t) == 12 and t[0] == 0.4 and t == sorted(t) and t[-1] > 0.9
    assert all(line["kl"] <= line["loss"] for line in lines if "kl" in line)


def test_packed_documents_get_the_hidden_states_they_have_alone(tiny: dict[str, Path]) -> None:
    rows = PackedRows(tiny["corpus"] / "packed" / "train")
    model = load_model(tiny["student"], MACHINE)
    batch = rows.batch([0, 1])
    packed = hidden_states(model, batch, MACHINE)
    compared = 0
    for row in range(2):
        for document in range(1, int(batch.doc_ids_BT[row].max()) + 1):
            places = batch.doc_ids_BT[row] == document
            alone = model.model(input_ids=batch.tokens_BT[row][places][None]).last_hidden_state[0]
            assert torch.allclose(packed[row][places], alone, atol=1e-5)
            compared += 1
    assert compared > 2, "the rows hold several documents"


def test_row_losses_equal_transformers_own_loss(tiny: dict[str, Path]) -> None:
    rows = PackedRows(tiny["corpus"] / "packed" / "test")
    size = Tokenizer.load(tiny["tokenizer"]).size
    model = load_model(tiny["student"], MACHINE)
    batch = rows.batch(range(rows.num_rows))
    expected = []
    for tokens, ids in zip(batch.tokens_BT, batch.doc_ids_BT, strict=True):
        total = 0.0
        for document in range(1, int(ids.max()) + 1):
            alone = tokens[ids == document][None]
            logits = model(input_ids=alone).logits[0, :-1, :size].double()
            total += float(torch.nn.functional.cross_entropy(logits, alone[0, 1:], reduction="sum"))
        expected.append(total)
    found = row_losses(model, rows, MACHINE, vocabulary=size, rows_per_batch=3)
    assert [loss for loss, _ in found] == pytest.approx(expected, rel=1e-5)
    assert sum(count for _, count in found) == float((batch.weights_BT > 0).sum())


def test_the_student_reads_only_the_tokens_it_may(tiny: dict[str, Path], tmp_path: Path) -> None:
    config = replace(CONFIG, corpus_tokens=100, steps=4, method="cross_entropy")
    _run(config, tmp_path / "out", tiny, teacher=False)
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]
    assert 100 <= facts["corpus_tokens"] < 150 < facts["tokens"]
    rows = PackedRows(tiny["corpus"] / "packed" / "train", limit_tokens=100)
    seen = {row for step in range(50) for row in rows_of_step(step, rows_per_step=3, num_rows=rows.num_rows, seed=0)}
    assert seen == set(range(rows.num_rows))


def test_contradictions_are_refused_with_one_line(tiny: dict[str, Path], tmp_path: Path) -> None:
    other = tokenizer_folder(tmp_path / "other", vocabulary=300)
    foreign = model_folder(tmp_path / "foreign", other)
    workspace = Workspace(folder=tmp_path, machine=MACHINE)
    small = replace(CONFIG, steps=1)
    with pytest.raises(UserError, match="tokenizer"):
        distill(replace(small, method="cross_entropy"), workspace, tiny["corpus"], foreign, None)
    with pytest.raises(UserError, match="token ids"):
        distill(small, workspace, tiny["corpus"], tiny["student"], foreign)
    with pytest.raises(UserError, match="teacher"):
        distill(small, workspace, tiny["corpus"], tiny["student"], None)
    with pytest.raises(UserError, match="no teacher"):
        distill(replace(small, method="cross_entropy"), workspace, tiny["corpus"], tiny["student"], tiny["teacher"])
    with pytest.raises(UserError, match="a method out of"):
        DistillConfig(method="magic")
    with pytest.raises(UserError, match="at least 1"):
        DistillConfig(steps=0)
    long_rows = corpus_folder(tmp_path / "long", tiny["tokenizer"], sequence_tokens=256)
    with pytest.raises(UserError, match="positions"):
        distill(replace(small, method="cross_entropy"), workspace, long_rows, tiny["student"], None)


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finite"):
        _run(replace(CONFIG, optim=OptimConfig(learning_rate=1e30, gradient_clip=0.0)), tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()


def test_a_validation_split_without_tokens_is_refused_before_training(tiny: dict[str, Path], tmp_path: Path) -> None:
    corpus = corpus_folder(tmp_path / "corpus", tiny["tokenizer"])
    tokenizer = Tokenizer.load(tiny["tokenizer"])
    workspace = Workspace(folder=tmp_path, machine=MACHINE)
    ids = [*tokenizer.encode("米です。"), tokenizer.document_end_id]
    for documents in ([], [(ids, [0] * len(ids))]):
        shutil.rmtree(corpus / "packed" / "validation")
        write_packed(corpus / "packed" / "validation", documents, sequence_tokens=48, tokenizer=tokenizer)
        with pytest.raises(UserError, match="at least one supervised token"):
            distill(replace(CONFIG, method="cross_entropy"), workspace, corpus, tiny["student"], None)


def test_a_validation_loss_that_is_not_finite_is_one_line(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.train.mean_loss", lambda losses: math.nan)
    with pytest.raises(UserError, match="finite loss"):
        _run(CONFIG, tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()


def test_planted_heads_attend_to_the_token_before(tiny: dict[str, Path]) -> None:
    head_dim, theta = 64, 10_000.0
    query, key = previous_token_biases(head_dim, theta, 4.0)
    frequencies = theta ** (-torch.arange(head_dim // 2) / (head_dim // 2))

    def rotate(vector: torch.Tensor, position: int) -> torch.Tensor:
        angle = torch.cat([frequencies, frequencies]) * position
        first, second = vector.chunk(2)
        return vector * angle.cos() + torch.cat([-second, first]) * angle.sin()

    logits = torch.stack([rotate(query, 20) @ rotate(key, 20 - distance) for distance in range(20)]) / head_dim**0.5
    assert int(logits.argmax()) == 1
    assert logits[1] == pytest.approx(4.0, rel=1e-4)
    assert logits[1] > torch.cat([logits[:1], logits[2:]]).max() + 0.3


def test_an_init_config_must_fit() -> None:
    with pytest.raises(UserError, match="JSON"):
        InitConfig(config_json="{")
    with pytest.raises(UserError, match="previous_token_heads"):
        InitConfig(
            config_json=qwen2_config(
                hidden=32, inner=64, layers=1, heads=2, kv_heads=1, vocabulary_rows=400, positions=64
            ),
            previous_token_heads=3,
        )
