"""On-policy mixing: prompts, responses against greedy decoding, replay, the adaptive share against its rule, resume."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_tiny import MACHINE, run_folders

from common.checkpoint import load_model
from common.packing import PackedRows, VarlenBatch
from common.store import run_alone
from common.tokenizer import Tokenizer
from distill.on_policy import OnPolicy, OnPolicyConfig, Rollout, ShareState, next_share, pack_rollouts, prompts_of
from distill.train import DistillConfig, distill


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def real(tiny: dict[str, Path]) -> VarlenBatch:
    return PackedRows(tiny["corpus"] / "packed" / "train").batch([0, 1, 2]).varlen()


def own(tiny: dict[str, Path], **settings: Any) -> OnPolicy:
    given: dict[str, Any] = {"probability": 1.0, "max_new_tokens": 12} | settings
    config = OnPolicyConfig(**given)
    return OnPolicy(config, load_model(tiny["student"], MACHINE), Tokenizer.load(tiny["tokenizer"]), MACHINE, seed=3)


def mixed(writer: OnPolicy, real: VarlenBatch, *, step: int = 0) -> VarlenBatch:
    """The first micro-batch of a step of 200."""
    return writer.mix_in_rollouts(real, step=step, steps=200, index=0, rank=0)


@given(
    documents=st.lists(
        st.tuples(st.lists(st.integers(0, 99), min_size=2, max_size=9), st.integers(1, 8)).filter(
            lambda document: document[1] < len(document[0])
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_response_counts_and_its_prompt_does_not(documents: list[tuple[list[int], int]]) -> None:
    real = pack_rollouts([Rollout(ids=tuple(ids), prompt_tokens=prompt) for ids, prompt in documents])
    start = 0
    for ids, prompt in documents:
        part = slice(start, start + len(ids))
        assert real.tokens_M[part].tolist() == ids and real.positions_M[part].tolist() == list(range(len(ids)))
        supervised = [
            target for target, weight in zip(real.targets_M[part].tolist(), real.weights_M[part], strict=True) if weight
        ]
        assert supervised == ids[prompt:], "exactly the response's tokens are predicted"
        start += len(ids)
    assert sum(real.lengths) == start
    # A prompt of one token leaves no token of weight 0, so what is longer is found again from the weights alone.
    if all(prompt > 1 for _, prompt in documents):
        assert prompts_of(real, OnPolicyConfig()) == [ids[:prompt] for ids, prompt in documents]


def test_where_every_token_counts_the_first_part_is_the_prompt(real: VarlenBatch) -> None:
    prompts = prompts_of(real, OnPolicyConfig(prompt_share=0.25))
    assert len(prompts) == len(real.lengths) > 2
    start = 0
    for prompt, length in zip(prompts, real.lengths, strict=True):
        assert prompt == real.tokens_M[start : start + round(length * 0.25)].tolist()
        start += length


def greedy(model: Any, prompt: list[int], size: int, stop: tuple[int, ...], limit: int) -> list[int]:
    """Token after token, each from a whole forward pass without a cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + limit:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1, :size].argmax()))
        if ids[-1] in stop:
            break
    return ids


def test_responses_are_the_students_own_greedy_ones(tiny: dict[str, Path], real: VarlenBatch) -> None:
    tokenizer, model = Tokenizer.load(tiny["tokenizer"]), load_model(tiny["student"], MACHINE)
    responses = mixed(own(tiny), real)
    start = 0
    for prompt, length in zip(prompts_of(real, OnPolicyConfig()), responses.lengths, strict=True):
        ids = responses.tokens_M[start : start + length].tolist()
        assert ids == greedy(model, prompt, tokenizer.size, tokenizer.stop_ids, 12)
        start += length
    assert not responses.tokens_M.requires_grad and int(responses.tokens_M.max()) < tokenizer.size


def test_a_penalty_in_the_students_own_file_stays_out(tiny: dict[str, Path], real: VarlenBatch) -> None:
    expected = mixed(own(tiny), real)
    config = OnPolicyConfig(probability=1.0, max_new_tokens=12)
    model: Any = load_model(tiny["student"], MACHINE)
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.repetition_penalty = 50.0
    writer = OnPolicy(config, model, Tokenizer.load(tiny["tokenizer"]), MACHINE, seed=3)
    assert torch.equal(mixed(writer, real).tokens_M, expected.tokens_M)
    assert model.generation_config.repetition_penalty == 50.0


def test_sampling_follows_the_seed_and_leaves_torchs_generator_alone(tiny: dict[str, Path], real: VarlenBatch) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again = (mixed(own(tiny, temperature=1.5), real, step=4) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.tokens_M, again.tokens_M)
    other = mixed(own(tiny, temperature=1.5), real, step=5)
    assert not torch.equal(first.tokens_M[:60], other.tokens_M[:60])


def test_the_given_share_of_batches_is_the_students_own(tiny: dict[str, Path], real: VarlenBatch) -> None:
    writer = own(tiny, probability=0.3, max_new_tokens=1)
    changed = sum(mixed(writer, real, step=step) is not real for step in range(200))
    assert 40 <= changed <= 80
    assert mixed(own(tiny, probability=0.0), real) is real


def test_the_buffer_is_replayed_bounded_and_saved(
    tiny: dict[str, Path], real: VarlenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_documents = len(real.lengths)
    writer = own(tiny, replay=1.0, buffer_documents=num_documents + 2)
    first = mixed(writer, real)
    assert len(writer.state()["replay"]) == num_documents
    restored = own(tiny, replay=1.0)
    restored.load_state(json.loads(json.dumps(writer.state())))
    monkeypatch.setattr(OnPolicy, "_generate", lambda *given, **options: pytest.fail("the buffer holds enough"))
    replayed = [mixed(source, real, step=1) for source in (writer, restored)]
    assert torch.equal(replayed[0].tokens_M, replayed[1].tokens_M)
    assert sorted(replayed[0].tokens_M.tolist()) == sorted(first.tokens_M.tolist())
    monkeypatch.undo()
    fresh = own(tiny, replay=0.0, buffer_documents=num_documents + 2)
    for step in range(2):
        mixed(fresh, real, step=step)
    assert len(fresh.state()["replay"]) == num_documents + 2


@pytest.mark.parametrize("settings", [{"replay": 1.0}, {"schedule": "adaptive"}], ids=["fixed", "adaptive"])
def test_a_buffer_smaller_than_a_batch_is_replayed_whole(
    tiny: dict[str, Path], real: VarlenBatch, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    writer = own(tiny, buffer_documents=len(real.lengths) - 1, **settings)
    mixed(writer, real, step=198)
    monkeypatch.setattr(OnPolicy, "_generate", lambda *given, **options: pytest.fail("the buffer is full"))
    assert len(mixed(writer, real, step=199).lengths) == len(real.lengths) - 1


LOSSES = st.lists(st.floats(0.5, 4.0), min_size=1, max_size=30)


@given(losses=LOSSES, start=st.floats(0.0, 1.0), rise=st.floats(0.01, 1.0), tolerance=st.floats(0.0, 1.0))
def test_an_adaptive_share_is_the_written_out_rule(
    losses: list[float], start: float, rise: float, tolerance: float
) -> None:
    config = OnPolicyConfig(schedule="adaptive", probability=start, rise=rise, tolerance_nats=tolerance)
    state = ShareState(probability=start)
    for loss in losses:
        state = next_share(state, loss, config)
    before, rises = losses[0], 0
    for loss in losses[1:]:
        if not loss < before + tolerance:
            before, rises = loss, rises + 1
    assert state.reference_nats == before
    assert state.probability == pytest.approx(min(1.0, start + rises * rise))


def test_the_share_waits_for_the_loss_to_climb_back_over_where_it_started() -> None:
    config, state = OnPolicyConfig(schedule="adaptive"), ShareState(probability=0.0)
    shares: list[float] = []
    for loss in (2.0, 1.5, 1.9, 2.09, 2.1, 2.15, 1.0, 2.3):
        state = next_share(state, loss, config)
        shares.append(state.probability)
    assert shares == [0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.2]


def test_with_an_adaptive_share_replay_takes_over_once_the_buffer_is_full(
    tiny: dict[str, Path], real: VarlenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def write(_: OnPolicy, prompts: list[list[int]], *, seed: int) -> list[Rollout]:
        written.append(seed)
        return [Rollout(ids=(*prompt, 1), prompt_tokens=len(prompt)) for prompt in prompts]

    monkeypatch.setattr(OnPolicy, "_generate", write)
    documents = len(prompts_of(real, OnPolicyConfig()))
    writer = own(tiny, schedule="adaptive", buffer_documents=3 * documents)
    for done in range(3):
        mixed(writer, real, step=199)
        assert len(written) == done + 1, "the buffer is not full, so even the last step writes anew"
    mixed(writer, real, step=199)
    assert len(written) == 3, "in the last step all of it is replayed"
    # 1 - n/N of the steps write anew: 75 of the first hundred and 25 of the second.
    for steps, least, most in ((range(100), 60, 90), (range(100, 200), 12, 38)):
        before = len(written)
        for step in steps:
            mixed(writer, real, step=step)
        assert least <= len(written) - before <= most


def rising(*_: Any, step: int, **__: Any) -> float:
    """A held-out loss that rises by 0.06 a step: validated at each, every second validation is 0.1 above the last."""
    return 1.0 + 0.06 * step


def _metrics(folder: Path, *fields: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [[line[field] for line in lines if field in line] for field in fields]


CONFIG = DistillConfig(
    method="jensen_shannon",
    on_policy=OnPolicyConfig(probability=0.7, replay=0.5, max_new_tokens=6, temperature=1.0),
    steps=8,
    rows_per_step=2,
    micro_batch_rows=1,
    validate_every=4,
    checkpoint_every=2,
)

ADAPTIVE = replace(
    CONFIG,
    on_policy=OnPolicyConfig(
        schedule="adaptive", probability=0.4, rise=0.3, buffer_documents=12, max_new_tokens=6, temperature=1.0
    ),
    validate_every=1,
)

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_distill_on_policy as here
import common.training_state as checkpoint
original = checkpoint.CheckpointManager.save
def save(self, step, values):
    original(self, step, values)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.CheckpointManager.save = save
here.train(Path({out!r}), {{name: Path(path) for name, path in {tiny!r}.items()}})
"""


def train(out: Path, tiny: dict[str, Path], config: DistillConfig = ADAPTIVE) -> dict[str, torch.Tensor]:
    """The weights of a run whose held-out loss rises."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("distill.train.held_out_loss", rising)
        patched.setattr("distill.train.mean_loss", lambda *given: rising(step=0))
        run_alone(distill, config, out, tiny["corpus"], tiny["student"], tiny["teacher"])
    return load_file(out / "model.safetensors")


def test_a_killed_run_writes_the_same_responses_again(tiny: dict[str, Path], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", tiny)
    paths = {name: str(path) for name, path in tiny.items()}
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "killed"), tiny=paths)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    resumed = train(tmp_path / "killed", tiny)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    fields = ("loss", "on_policy_share", "tokens")
    assert _metrics(tmp_path / "whole", *fields) == _metrics(tmp_path / "killed", *fields)


def test_the_share_adapts_at_validations_and_is_logged(tiny: dict[str, Path], tmp_path: Path) -> None:
    train(tmp_path / "each", tiny)
    # 1.0 is stored before step 1; 1.12, 1.24 and 1.36 are the first ones 0.1 above what was stored last.
    wanted = [0.4, 0.4, 0.7, 0.7, 1.0, 1.0, 1.0, 1.0]
    assert _metrics(tmp_path / "each", "on_policy_share") == [pytest.approx(wanted)]
    train(tmp_path / "rare", tiny, replace(ADAPTIVE, validate_every=4))
    assert _metrics(tmp_path / "rare", "on_policy_share") == [pytest.approx([0.4] * 4 + [0.7] * 4)]


def test_a_fixed_share_stays_and_is_not_logged(tiny: dict[str, Path], tmp_path: Path) -> None:
    asked: list[int] = []

    def held_out(*given: Any, step: int, **options: Any) -> float:
        asked.append(step)
        return rising(step=step)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("distill.train.held_out_loss", held_out)
        run_alone(distill, CONFIG, tmp_path / "out", tiny["corpus"], tiny["student"], tiny["teacher"])
    assert asked == [4, 8] and _metrics(tmp_path / "out", "on_policy_share") == [[]]


def test_settings_that_cannot_be_are_refused() -> None:
    shares = (("probability", 1.2), ("replay", -0.1), ("prompt_share", 0.0), ("prompt_share", 1.0), ("rise", 0.0))
    for setting, value in (*shares, ("rise", 1.1), ("tolerance_nats", -0.1), ("max_new_tokens", 0)):
        with refuses("out-of-range", wanted=setting, got=f"{value:g}"):
            replace(OnPolicyConfig(schedule="adaptive"), **{setting: value})
    with refuses("contradiction", wanted="replay 0", got="replay 0.5"):
        OnPolicyConfig(schedule="adaptive", replay=0.5)
    with refuses("contradiction", wanted="a method with a teacher", got="cross_entropy"):
        replace(CONFIG, method="cross_entropy")
