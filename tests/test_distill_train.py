"""The distillation loop: resume, packing, reading ahead, the teacher, conversations, what it and its verb refuse."""

import argparse
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors_tiny import refuses
from safetensors.torch import load_file
from training_tiny import MACHINE, NAMES, THINGS, corpus_folder, model_folder, run_folders, tokenizer_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.checkpoint import hidden_states, load_model
from common.errors import UserError
from common.optim import OptimConfig, Optimizers
from common.packing import PackedRows, rows_of_step, write_packed
from common.store import Workspace, run_alone
from common.tokenizer import Tokenizer
from common.training import mean_loss, row_losses
from distill.__main__ import main as distill_main
from distill.controllers import CtkdConfig
from distill.initial import InitConfig, init, previous_token_biases, qwen2_config
from distill.methods import METHODS
from distill.on_policy import OnPolicyConfig
from distill.taid import TaidConfig, initial_state, linear_floor, next_state
from distill.teacher import require_same_vocabulary
from distill.train import DistillConfig, distill
from distill.train_cli import add_verbs
from instruct.__main__ import main as instruct


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_folders(tmp_path_factory.mktemp("tiny"))


CONFIG = DistillConfig(
    method="taid",
    taid=TaidConfig(alpha=0.5),
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
        mean_loss(row_losses(load_model(folder, MACHINE), rows, MACHINE, vocab_size=size))
        for folder in (tiny["student"], tmp_path / "out")
    ]
    assert losses[1] < losses[0] - 1.0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["facts"]["steps"] == 30 and manifest["facts"]["tokens"] > 0
    assert not (tmp_path / "out" / "scratch").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)


def test_micro_batches_change_nothing_but_rounding(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.store.building.probe", lambda _: MACHINE)  # float32, also where bfloat16 is faster
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
import common.training_state as checkpoint
saves = 0
original = checkpoint.CheckpointManager.save
def save(self, step, values):
    global saves
    original(self, step, values)
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.CheckpointManager.save = save
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
    facts = [json.loads((tmp_path / name / "manifest.json").read_text())["facts"] for name in ("whole", "killed")]
    assert {**facts[0], "tokens_per_s": 0} == {**facts[1], "tokens_per_s": 0}
    metrics = [(tmp_path / folder / "metrics.jsonl").read_text().splitlines() for folder in ("whole", "killed")]
    steps = [[json.loads(line)["step"] for line in lines] for lines in metrics]
    assert steps[0] == steps[1], "no step is logged twice"
    fields = ("t", "t_momentum", "loss")
    assert _metrics(tmp_path / "whole", *fields) == _metrics(tmp_path / "killed", *fields)


def test_t_rises_over_the_run_and_is_logged(tiny: dict[str, Path], tmp_path: Path) -> None:
    _run(CONFIG, tmp_path / "out", tiny)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    t = [line["t"] for line in lines if "t" in line]
    assert len(t) == 12 and t[0] == 0.4 and t == sorted(t) and t[-1] > 0.9 and t[6] > linear_floor(6, 12, CONFIG.taid)
    assert all(line["kl"] <= line["loss"] for line in lines if "kl" in line)


def test_packed_documents_get_the_hidden_states_they_have_alone(tiny: dict[str, Path]) -> None:
    rows = PackedRows(tiny["corpus"] / "packed" / "train")
    model = load_model(tiny["student"], MACHINE)
    batch = rows.batch([0, 1])
    hidden = hidden_states(model, batch.varlen(), MACHINE)
    packed = torch.zeros(*batch.tokens_BT.shape, hidden.size(1))
    packed[batch.doc_ids_BT > 0] = hidden
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
    found = row_losses(model, rows, MACHINE, vocab_size=size, rows_per_batch=3)
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
    with refuses("mismatch", wanted="tokenizer"):
        distill(replace(small, method="cross_entropy"), workspace, tiny["corpus"], foreign, None)
    with refuses("mismatch", wanted="token ids", got=str(foreign)):
        distill(small, workspace, tiny["corpus"], tiny["student"], foreign)
    with refuses("contradiction", wanted="a teacher", got="none"):
        distill(small, workspace, tiny["corpus"], tiny["student"], None)
    with refuses("contradiction", wanted="no teacher", got=str(tiny["teacher"])):
        distill(replace(small, method="cross_entropy"), workspace, tiny["corpus"], tiny["student"], tiny["teacher"])
    with refuses("unknown-name", wanted="forward_kl", got="magic"):
        DistillConfig(method="magic")
    for name, count in (("steps", 0), ("corpus_tokens", -2), ("chunk_tokens", 0), ("validate_every", 0)):
        with refuses("out-of-range", wanted=name, got=str(count)):
            replace(small, **{name: count})
    long_rows = corpus_folder(tmp_path / "long", tiny["tokenizer"], sequence_tokens=256)
    with refuses("mismatch", wanted="128", got="256"):
        distill(replace(small, method="cross_entropy"), workspace, long_rows, tiny["student"], None)


def test_the_first_token_that_differs_is_named(tiny: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(tiny["teacher"], tmp_path / "swapped")
    path = tmp_path / "swapped" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other = (next(token for token, index in vocabulary.items() if index == place) for place in (300, 310))
    vocabulary[one], vocabulary[other] = 310, 300
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    with refuses("mismatch", got=f"id 300 is {one!r} for the student and {other!r} for the teacher"):
        require_same_vocabulary(Tokenizer.load(tiny["tokenizer"]), tmp_path / "swapped")
    require_same_vocabulary(Tokenizer.load(tiny["tokenizer"]), tiny["teacher"])


def test_an_alpha_that_cannot_matter_is_said_and_kept(
    tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, alpha in (("idle", 1e-6), ("works", 0.9)):
        _run(replace(CONFIG, steps=3, taid=TaidConfig(alpha=alpha)), tmp_path / name, tiny)
        said = capsys.readouterr()
        warnings = json.loads((tmp_path / name / "manifest.json").read_text())["facts"]["warnings"]
        assert len([each for each in warnings if "alpha" in each]) == (1 if name == "idle" else 0)
        assert ("warning: TAID's alpha 1e-06 is below" in said.out + said.err) is (name == "idle")


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny: dict[str, Path], tmp_path: Path) -> None:
    with refuses("not-finite", got="optimizer step"):
        _run(replace(CONFIG, optim=OptimConfig(learning_rate=1e30, gradient_clip=0.0)), tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]


def _inline(make: Callable[[int], Any], steps: Iterable[int]) -> Iterator[tuple[int, Any]]:
    return ((step, make(step)) for step in steps)


def test_batches_are_read_ahead_and_no_bit_differs(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[str] = []
    original = PackedRows.batch

    def batch(self: PackedRows, rows: Any) -> Any:
        readers.append(threading.current_thread().name)
        return original(self, rows)

    monkeypatch.setattr(PackedRows, "batch", batch)
    ahead = _run(CONFIG, tmp_path / "ahead", tiny)
    assert sum("prefetch" in name for name in readers) == 2 * CONFIG.steps, "two micro-batches a step"
    monkeypatch.setattr("distill.train.prefetched", _inline)
    inline = _run(CONFIG, tmp_path / "inline", tiny)
    assert sum("prefetch" in name for name in readers) == 2 * CONFIG.steps
    assert all(torch.equal(ahead[name], inline[name]) for name in ahead)
    fields = ("loss", "kl", "t", "gradient_norm", "validation_loss", "tokens")
    assert _metrics(tmp_path / "ahead", *fields) == _metrics(tmp_path / "inline", *fields)


def test_a_validation_split_without_tokens_is_refused_before_training(tiny: dict[str, Path], tmp_path: Path) -> None:
    corpus = corpus_folder(tmp_path / "corpus", tiny["tokenizer"])
    tokenizer = Tokenizer.load(tiny["tokenizer"])
    workspace = Workspace(folder=tmp_path, machine=MACHINE)
    ids = [*tokenizer.encode("米です。"), tokenizer.document_end_id]
    for documents in ([], [(ids, [0] * len(ids))]):
        shutil.rmtree(corpus / "packed" / "validation")
        write_packed(corpus / "packed" / "validation", documents, sequence_tokens=48, tokenizer=tokenizer)
        with refuses("empty", got=str(corpus / "packed" / "validation")):
            distill(replace(CONFIG, method="cross_entropy"), workspace, corpus, tiny["student"], None)


def test_a_validation_loss_that_is_not_finite_is_one_line(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loop has the name of its own for what it measures before the first step.
    monkeypatch.setattr("common.training.row_losses", lambda *given, **options: [(math.nan, 1.0)])
    with refuses("not-finite", wanted="validation loss", got="nan in optimizer step 4"):
        _run(CONFIG, tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()


def _metrics(folder: Path, *fields: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line[field] for line in lines if field in line] for field in fields]


def test_validation_moves_neither_t_nor_the_weights(tiny: dict[str, Path], tmp_path: Path) -> None:
    rare = _run(replace(CONFIG, steps=6, validate_every=6), tmp_path / "rare", tiny)
    often = _run(replace(CONFIG, steps=6, validate_every=1), tmp_path / "often", tiny)
    fields = ("t", "t_momentum", "loss")
    assert _metrics(tmp_path / "rare", *fields) == _metrics(tmp_path / "often", *fields)
    last = json.loads((tmp_path / "often" / "manifest.json").read_text())["facts"]["best_step"] == 6
    assert not last or all(torch.equal(rare[name], often[name]) for name in rare)


def test_accumulation_moves_t_once_a_step(tiny: dict[str, Path], tmp_path: Path) -> None:
    for rows in (3, 1):
        _run(replace(CONFIG, micro_batch_rows=rows, steps=6), tmp_path / str(rows), tiny)
        t, momentum, losses = _metrics(tmp_path / str(rows), "t", "t_momentum", "loss")
        state = initial_state(CONFIG.taid)
        for step, loss in enumerate(losses, start=1):
            assert t[step - 1] == state.t
            state = next_state(state, loss, step=step, steps=6, config=CONFIG.taid)
            assert momentum[step - 1] == state.t_momentum
        assert t[3] > linear_floor(3, 6, CONFIG.taid), "the adaptive term leads, so the loss matters"
    one, three = (_metrics(tmp_path / name, "t")[0] for name in ("3", "1"))
    assert len(one) == 6 and one == pytest.approx(three, rel=1e-6)


def test_a_step_without_a_valid_token_changes_nothing(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Every second row has weights of 0; with one row a step, every second step has nothing to learn from."""
    tokenizer = Tokenizer.load(tiny["tokenizer"])
    corpus = corpus_folder(tmp_path / "corpus", tiny["tokenizer"])
    shutil.rmtree(corpus / "packed" / "train")
    ids = [tokenizer.document_end_id] * 48
    documents = [(ids, [100] * 48), (ids, [0] * 48)]
    write_packed(corpus / "packed" / "train", documents, sequence_tokens=48, tokenizer=tokenizer)
    config = replace(CONFIG, steps=2, rows_per_step=1, validate_every=1, checkpoint_every=1)
    for seed in range(8):
        order = [rows_of_step(step, rows_per_step=1, num_rows=2, seed=seed)[0] for step in range(2)]
        valid = [int(PackedRows(corpus / "packed" / "train").batch([row]).num_valid_tokens > 0) for row in order]
        if valid == [1, 0]:
            break
    else:
        pytest.fail("no seed puts the row without valid tokens second")
    run_alone(distill, replace(config, seed=seed), tmp_path / "out", corpus, tiny["student"], tiny["teacher"])
    loss, norm, t, held_out = _metrics(tmp_path / "out", "loss", "gradient_norm", "t", "validation_loss")
    assert loss[0] > 0.0 and loss[1] == norm[1] == 0.0
    assert t == [0.4, 0.4] and held_out[0] != held_out[1] == held_out[2]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["facts"]["t_final"] == 0.4


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("seen", ["before the first step", "in the first step"])
def test_broken_weights_are_named_before_the_optimizer_runs(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, seen: str
) -> None:
    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny[side], broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (broken / "manifest.json").unlink()
    steps: list[float] = []
    monkeypatch.setattr(Optimizers, "step", lambda self, factor: steps.append(factor))  # pyright: ignore
    wanted, got = f"{side} logits", "optimizer step 1"
    if seen == "in the first step":
        monkeypatch.setattr("distill.train.row_losses", lambda *given, indices, **options: [(1.0, 1.0)] * len(indices))
    else:
        wanted, got = f"validation loss of the {'model' if side == 'student' else side}", "before the first"
    with refuses("not-finite", wanted=wanted, got=got):
        _run(CONFIG, tmp_path / "out", {**tiny, side: broken})
    assert not steps, "the optimizer does not run on it"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_trains(tiny: dict[str, Path], tmp_path: Path, name: str) -> None:
    config = replace(CONFIG, method=name, steps=4, lm_weight=0.1, ctkd=CtkdConfig(learning_rate=5.0))
    _run(config, tmp_path / "out", tiny, teacher=METHODS[name].needs_teacher)
    losses, first = _metrics(tmp_path / "out", "validation_loss", "loss")
    assert losses[-1] < math.log(400) and all(math.isfinite(loss) for loss in first)
    if name == "ctkd":
        (temperatures,) = _metrics(tmp_path / "out", "temperature")
        assert temperatures[0] == pytest.approx(1 + 20 / (1 + math.exp(-1))) and len(set(temperatures)) > 2


def test_settings_that_no_method_takes_are_refused() -> None:
    for name in ("ctkd", "cross_entropy"):
        with refuses("contradiction", wanted="temperature 1", got=f"2 for {name}"):
            DistillConfig(method=name, temperature=2.0)
    for temperature in (0.0, math.nan):
        with refuses("out-of-range", wanted="temperature above 0", got=f"{temperature:g}"):
            DistillConfig(method="taid", temperature=temperature)
    with refuses("out-of-range", wanted="lm_weight", got="1.5"):
        DistillConfig(method="taid", lm_weight=1.5)
    with refuses("contradiction", wanted="on_policy", got="taid, lm_weight 0.1"):
        DistillConfig(method="taid", lm_weight=0.1, on_policy=OnPolicyConfig())
    with refuses("out-of-range", wanted="beta above 0", got="2"):
        DistillConfig(method="jensen_shannon", settings=(("beta", 2.0),))


PROCESS = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from dataclasses import replace
import test_distill_train as here
from common.store import Workspace
from distill.train import distill
tiny = {{name: Path(path) for name, path in {tiny!r}.items()}}
config = replace(here.CONFIG, steps=5, rows_per_step=4, micro_batch_rows=2, validate_every=2, checkpoint_every=5)
workspace = Workspace(folder=Path({out!r}), machine=here.MACHINE)
distill(config, workspace, tiny["corpus"], tiny["student"], tiny["teacher"])
"""


def test_two_processes_do_what_one_does(tiny: dict[str, Path], tmp_path: Path, loopback: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for size in (1, 2):
        out = tmp_path / str(size)
        out.mkdir()
        code = PROCESS.format(
            tests=str(Path(__file__).parent),
            tiny={name: str(path) for name, path in tiny.items()},
            out=str(out),
        )
        named = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, **named, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        for process in processes:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
    fields = ("loss", "kl", "t", "t_momentum", "gradient_norm", "validation_loss", "tokens")
    for one, two in zip(_metrics(tmp_path / "1", *fields), _metrics(tmp_path / "2", *fields), strict=True):
        # A sum in another order moves a loss by its last digit, and the momentum by a hundredth of that.
        assert len(one) == len(two) > 0 and one == pytest.approx(two, rel=1e-4, abs=1e-8)
    first, second = (load_file(tmp_path / size / "model.safetensors") for size in ("1", "2"))
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_a_stage_refuses_to_start_in_several_processes(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        _run(CONFIG, tmp_path / "out", tiny)
    assert not list(tmp_path.iterdir())


def _train(*arguments: str | float | Path) -> None:
    parser = argparse.ArgumentParser()
    add_verbs(parser.add_subparsers())
    parsed = parser.parse_args(["train", *map(str, arguments)])
    parsed.function(parsed)


TEACHER = ("--teacher", "TINY/teacher")
FORWARD_KL = (*TEACHER, "--method", "forward_kl")


RESPONSES = ("--on-policy above 0", "no responses of the student")


@pytest.mark.parametrize(
    ("flags", "wanted", "got"),
    [
        ([*FORWARD_KL, "--alpha", "0.1"], "--method taid or taid_labels for --alpha", "method forward_kl"),
        (["--t-start", "0.4", "--linear"], "for --t-start, --linear", "method cross_entropy"),
        ([*TEACHER, "--temperature-learning-rate", "1"], "--method ctkd for --temperature-learning-rate", "taid"),
        ([*TEACHER, "--linear", "--beta", "0.9"], "an adaptive t for --beta", "--linear"),
        ([*FORWARD_KL, "--replay", "0.5"], f"{RESPONSES[0]} for --replay", RESPONSES[1]),
        ([*FORWARD_KL, "--on-policy", "0", "--max-new-tokens", "9"], f"{RESPONSES[0]} for --max", RESPONSES[1]),
        ([*FORWARD_KL, "--sampling-temperature", "1"], f"{RESPONSES[0]} for --sampling-temperature", RESPONSES[1]),
        (
            [*FORWARD_KL, "--on-policy", "0.5", "--on-policy-rise", "0.2", "--on-policy-tolerance", "0"],
            "--on-policy-schedule adaptive for --on-policy-rise, --on-policy-tolerance",
            "a fixed share",
        ),
        ([*FORWARD_KL, "--on-policy-schedule", "adaptive", "--replay", "0.5"], "replay 0", "replay 0.5"),
        (["--on-policy", "0.5"], "a method with a teacher", "cross_entropy"),
        (["--lm-weight", "0.1"], "another method for --lm-weight", "method cross_entropy"),
        (["--muon-learning-rate", "0.1"], "--optimizer muon for --muon-learning-rate", "--optimizer adamw"),
        ([*FORWARD_KL, "--set", "beta=0.5"], "a setting of forward_kl", "beta"),
    ],
)
def test_a_flag_that_the_run_would_not_read_is_refused(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], wanted: str, got: str
) -> None:
    code = "unknown-name" if "--set" in flags else "contradiction"
    monkeypatch.setattr("distill.train_cli.run_alone", lambda *_: pytest.fail("the run has begun"))
    named = [flag.replace("TINY", str(tiny["teacher"].parent)) for flag in flags]
    with refuses(code, wanted=wanted, got=got) as refused:
        _train("--student", tiny["student"], "--corpus", tiny["corpus"], "--out", tmp_path / "out", *named)
    assert "\n" not in str(refused[0]) and not list(tmp_path.iterdir())


def test_flags_reach_the_config_and_defaults_stay_the_configs(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[DistillConfig, Path | None]] = []

    def note(_: Any, config: DistillConfig, out: Path, corpus: Path, student: Path, teacher: Path | None) -> None:
        runs.append((config, teacher))

    monkeypatch.setattr("distill.train_cli.run_alone", note)
    common = ("--student", tiny["student"], "--corpus", tiny["corpus"], "--out", "out")
    alpha = 5e-4 * 12_000 / 600
    _train(*common, "--steps", 600)
    assert runs.pop() == (DistillConfig(steps=600, taid=TaidConfig(alpha=alpha)), None)
    _train(*common, "--teacher", tiny["teacher"], *("--steps", 1200, "--ramp-share", 0.5, "--watch", "kl", "--seed", 3))
    taid = TaidConfig(alpha=alpha, ramp_share=0.5, controller_input="kl")
    assert runs.pop() == (DistillConfig(method="taid", steps=1200, seed=3, taid=taid), tiny["teacher"])
    _train(*common, "--teacher", tiny["teacher"], *("--released", "--optimizer", "muon", "--muon-learning-rate", 0.1))
    optim, taid = OptimConfig(matrices="muon", muon_learning_rate=0.1), TaidConfig(released=True)
    assert runs.pop()[0] == DistillConfig(method="taid", optim=optim, taid=taid)
    _train(*common, "--teacher", tiny["teacher"], "--linear", "--steps", 12_000)
    assert runs.pop()[0] == DistillConfig(method="taid", steps=12_000, taid=TaidConfig(adaptive=False))
    flags = ("--on-policy-schedule", "adaptive", "--on-policy-tolerance", 0.02, "--max-new-tokens", 9)
    _train(*common, "--teacher", tiny["teacher"], "--method", "skew_forward_kl", "--set", "skew=0.2", *flags)
    own = OnPolicyConfig(schedule="adaptive", probability=0.0, tolerance_nats=0.02, max_new_tokens=9)
    config = runs.pop()[0]
    assert config.on_policy == own and config.settings == (("skew", 0.2),) and config.method == "skew_forward_kl"


def test_a_folder_that_is_neither_corpus_nor_conversations_is_one_line(tiny: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for folder, code in ((tmp_path / "text", "wrong-format"), (tmp_path / "none", "not-found")):
        with refuses(code, wanted="--corpus", got=str(folder)) as refused:  # pyright: ignore[reportArgumentType]
            _train("--student", tiny["student"], "--corpus", folder, "--out", tmp_path / "out")
        assert "\n" not in str(refused[0])
    with refuses("not-found", wanted="packed rows", next_step="python -m distill corpus"):
        run_alone(distill, CONFIG, tmp_path / "out", tmp_path / "text", tiny["student"], tiny["teacher"])


def test_conversations_are_distilled_on_the_assistants_tokens_alone(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step's loss, over all rows, against dense logits of the conversations as transformers renders them."""
    monkeypatch.setattr("common.store.building.probe", lambda _: MACHINE)
    talks = [
        [{"role": "user", "content": f"{name}の{thing}は？"}, {"role": "assistant", "content": f"{thing}は名物です。"}]
        for name in NAMES
        for thing in THINGS
    ]
    rows = "".join(json.dumps({"messages": talk}, ensure_ascii=False) + "\n" for talk in talks)
    (tmp_path / "talks.jsonl").write_text(rows, encoding="utf-8")
    folders = ["--tokenizer", str(tiny["tokenizer"]), "--out", str(tmp_path / "talks"), "--sequence-tokens", "96"]
    shares = ["--calibration-share", "0.1", "--validation-share", "0.2", "--test-share", "0.1"]
    instruct(["conversations", str(tmp_path / "talks.jsonl"), *folders, *shares])
    train = PackedRows(tmp_path / "talks" / "packed" / "train")
    flags = ["--method", "forward_kl", "--steps", 4, "--rows-per-step", train.num_rows, "--learning-rate", 0.01]
    folders = ["--student", tiny["student"], "--teacher", tiny["teacher"], "--corpus", tmp_path / "talks"]
    _train(*folders, "--out", tmp_path / "out", *flags)
    batch = train.batch(range(train.num_rows))
    packed = {
        tuple(tokens[ids == document].tolist())
        for tokens, ids in zip(batch.tokens_BT, batch.doc_ids_BT, strict=True)
        for document in range(1, int(ids.max()) + 1)
    }
    hf: Any = AutoTokenizer.from_pretrained(tiny["tokenizer"])
    models = [AutoModelForCausalLM.from_pretrained(tiny[side]).double() for side in ("student", "teacher")]
    losses: list[torch.Tensor] = []
    for talk in talks:
        ids, prompt = (
            hf(hf.apply_chat_template(part, tokenize=False, add_generation_prompt=opened))["input_ids"]
            for part, opened in ((talk, False), (talk[:1], True))
        )
        matching = [document for document in packed if document[: len(ids)] == tuple(ids)]
        for document in matching:
            assert ids[: len(prompt)] == prompt and len(document) <= len(ids) + 1
            end = ids.index(hf.convert_tokens_to_ids("<|im_end|>"), len(prompt))
            with torch.no_grad():
                student, teacher = (
                    model(input_ids=torch.tensor([document]))
                    .logits[0, len(prompt) - 1 : end, : len(hf)]
                    .log_softmax(-1)
                    for model in models
                )
            losses.append((teacher.exp() * (teacher - student)).sum(-1))
    assert 20 < len(losses) == len(packed) < len(talks), "every packed document is one of the conversations"
    logged, held_out = _metrics(tmp_path / "out", "loss", "validation_loss")
    assert logged[0] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    assert logged[-1] < logged[0] and math.isfinite(held_out[-1])


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
    with refuses("wrong-format", wanted="JSON"):
        InitConfig(config_json="{")
    with refuses("out-of-range", wanted="previous_token_heads", got="3"):
        InitConfig(
            config_json=qwen2_config(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                vocab_size=400,
                max_position_embeddings=64,
            ),
            previous_token_heads=3,
        )


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"hiden_size": 64}, "unknown-name", "correct it to hidden_size"),
        ({"num_key_value_head": 1}, "unknown-name", "correct it to num_key_value_heads"),
        ({"wholly_other": 1}, "unknown-name", "leave it out"),
        ({"num_attention_heads": 3}, "contradiction", "3 heads for 64"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "contradiction", "3 for 4"),
        ({"hidden_size": "64"}, "out-of-range", "'64'"),
        ({"num_hidden_layers": 0}, "out-of-range", "num_hidden_layers"),
        ({"hidden_size": True}, "out-of-range", "True"),
    ],
)
def test_a_config_with_unknown_or_contradicting_keys_is_refused(
    tiny: dict[str, Path], tmp_path: Path, changed: dict[str, Any], code: Any, said: str
) -> None:
    fields: dict[str, Any] = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 500,
        "max_position_embeddings": 64,
        # What published configs hold besides.
        "architectures": ["Qwen2ForCausalLM"],
        "rope_theta": 1e6,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_mrope": False,
    }
    run_alone(init, InitConfig(config_json=json.dumps(fields)), tmp_path / "fits", tiny["tokenizer"])
    with refuses(code) as caught:
        broken = InitConfig(config_json=json.dumps(fields | changed))
        run_alone(init, broken, tmp_path / "broken", tiny["tokenizer"])
    assert said in str(caught[0])
    assert not (tmp_path / "broken").exists()


def test_a_folder_is_no_config(tiny: dict[str, Path], tmp_path: Path) -> None:
    with refuses("wrong-format", wanted="--config", got=str(tiny["student"])):
        verb = ["init", "--config", str(tiny["student"]), "--tokenizer", str(tiny["tokenizer"])]
        distill_main([*verb, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("rope", "trained"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}, 32),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}, None),
    ],
)
def test_a_rope_that_depends_on_the_batch_is_refused_in_packed_rows(
    tiny: dict[str, Path], tmp_path: Path, rope: dict[str, Any], trained: int | None
) -> None:
    """Rows of 48 tokens: a longer document in a batch would change the frequencies of all."""
    student = Path(shutil.copytree(tiny["student"], tmp_path / "student"))
    (student / "manifest.json").unlink()
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    changed = {**tiny, "student": student}
    if trained is None:
        _run(replace(CONFIG, steps=2), tmp_path / "out", changed)
        return
    with refuses("unsupported", wanted=f"at most {trained} tokens", got="48", next_step="sequence_tokens"):
        _run(CONFIG, tmp_path / "out", changed)
