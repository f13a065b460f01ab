"""On-policy mixing: prompts, the student's own responses against its greedy decoding, replay, resume."""

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
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_tiny import MACHINE, run_folders

from common.checkpoint import load_model
from common.errors import UserError
from common.packing import PackedRows, RealTokens
from common.store import run_alone
from common.tokenizer import Tokenizer
from distill.on_policy import OnPolicy, OnPolicyConfig, Written, as_real_tokens, prompts_of
from distill.train import DistillConfig, distill


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def real(tiny: dict[str, Path]) -> RealTokens:
    return PackedRows(tiny["corpus"] / "packed" / "train").batch([0, 1, 2]).real_tokens()


def own(tiny: dict[str, Path], **settings: Any) -> OnPolicy:
    given: dict[str, Any] = {"probability": 1.0, "max_new_tokens": 12} | settings
    config = OnPolicyConfig(**given)
    return OnPolicy(config, load_model(tiny["student"], MACHINE), Tokenizer.load(tiny["tokenizer"]), MACHINE, seed=3)


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
    real = as_real_tokens([Written(ids=tuple(ids), prompt_tokens=prompt) for ids, prompt in documents])
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


def test_where_every_token_counts_the_first_part_is_the_prompt(real: RealTokens) -> None:
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


def test_responses_are_the_students_own_greedy_ones(tiny: dict[str, Path], real: RealTokens) -> None:
    tokenizer, model = Tokenizer.load(tiny["tokenizer"]), load_model(tiny["student"], MACHINE)
    mixed = own(tiny).mixed(real, step=0, index=0, rank=0)
    start = 0
    for prompt, length in zip(prompts_of(real, OnPolicyConfig()), mixed.lengths, strict=True):
        ids = mixed.tokens_M[start : start + length].tolist()
        assert ids == greedy(model, prompt, tokenizer.size, tokenizer.stop_ids, 12)
        start += length
    assert not mixed.tokens_M.requires_grad and int(mixed.tokens_M.max()) < tokenizer.size


def test_a_penalty_in_the_students_own_file_stays_out(tiny: dict[str, Path], real: RealTokens) -> None:
    expected = own(tiny).mixed(real, step=0, index=0, rank=0)
    config = OnPolicyConfig(probability=1.0, max_new_tokens=12)
    model: Any = load_model(tiny["student"], MACHINE)
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.repetition_penalty = 50.0
    writer = OnPolicy(config, model, Tokenizer.load(tiny["tokenizer"]), MACHINE, seed=3)
    assert torch.equal(writer.mixed(real, step=0, index=0, rank=0).tokens_M, expected.tokens_M)
    assert model.generation_config.repetition_penalty == 50.0


def test_sampling_follows_the_seed_and_leaves_torchs_generator_alone(tiny: dict[str, Path], real: RealTokens) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again = (own(tiny, temperature=1.5).mixed(real, step=4, index=0, rank=0) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.tokens_M, again.tokens_M)
    other = own(tiny, temperature=1.5).mixed(real, step=5, index=0, rank=0)
    assert not torch.equal(first.tokens_M[:60], other.tokens_M[:60])


def test_the_given_share_of_batches_is_the_students_own(tiny: dict[str, Path], real: RealTokens) -> None:
    writer = own(tiny, probability=0.3, max_new_tokens=1)
    changed = sum(writer.mixed(real, step=step, index=0, rank=0) is not real for step in range(200))
    assert 40 <= changed <= 80
    assert own(tiny, probability=0.0).mixed(real, step=0, index=0, rank=0) is real


def test_the_buffer_is_replayed_bounded_and_saved(
    tiny: dict[str, Path], real: RealTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_documents = len(real.lengths)
    writer = own(tiny, replay=1.0, buffer_documents=num_documents + 2)
    first = writer.mixed(real, step=0, index=0, rank=0)
    assert len(writer.saved()) == num_documents
    restored = own(tiny, replay=1.0)
    restored.restore(json.loads(json.dumps(writer.saved())))
    monkeypatch.setattr(OnPolicy, "_write", lambda *given, **options: pytest.fail("the buffer holds enough"))
    replayed = [source.mixed(real, step=1, index=0, rank=0) for source in (writer, restored)]
    assert torch.equal(replayed[0].tokens_M, replayed[1].tokens_M)
    assert sorted(replayed[0].tokens_M.tolist()) == sorted(first.tokens_M.tolist())
    monkeypatch.undo()
    fresh = own(tiny, replay=0.0, buffer_documents=num_documents + 2)
    for step in range(2):
        fresh.mixed(real, step=step, index=0, rank=0)
    assert len(fresh.saved()) == num_documents + 2


CONFIG = DistillConfig(
    method="jensen_shannon",
    on_policy=OnPolicyConfig(probability=0.7, replay=0.5, max_new_tokens=6, temperature=1.0),
    steps=8,
    rows_per_step=2,
    micro_batch_rows=1,
    validate_every=4,
    checkpoint_every=2,
)

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_distill_on_policy as here
import common.training as training
original = training.Keeper.save
def save(self, step, values):
    original(self, step, values)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
training.Keeper.save = save
here.train(Path({out!r}), {{name: Path(path) for name, path in {tiny!r}.items()}})
"""


def train(out: Path, tiny: dict[str, Path]) -> dict[str, torch.Tensor]:
    run_alone(distill, CONFIG, out, tiny["corpus"], tiny["student"], tiny["teacher"])
    return load_file(out / "model.safetensors")


def test_a_killed_run_writes_the_same_responses_again(tiny: dict[str, Path], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", tiny)
    paths = {name: str(path) for name, path in tiny.items()}
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "killed"), tiny=paths)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    resumed = train(tmp_path / "killed", tiny)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_settings_that_cannot_be_are_refused() -> None:
    broken: list[dict[str, Any]] = [{"probability": 1.2}, {"replay": -0.1}, {"prompt_share": 1.0}]
    for settings in broken:
        with pytest.raises(UserError, match="mend the on-policy settings"):
            OnPolicyConfig(**settings)
    with pytest.raises(UserError, match="at least 1"):
        OnPolicyConfig(max_new_tokens=0)
    with pytest.raises(UserError, match="a method with a teacher"):
        replace(CONFIG, method="cross_entropy")
