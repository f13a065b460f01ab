"""The checkpoint runtime against transformers itself, one item at a time, and the pure layout of batches."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import eval_tiny
import numpy as np
import pytest
import torch
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2ForCausalLM

from common.errors import UserError
from eval.runtimes import open_runtime, torch_runtime
from eval.runtimes.batches import by_budget, cut_at_stop, score_rows
from eval.runtimes.torch_runtime import CheckpointRuntime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = eval_tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    model = Qwen2ForCausalLM.from_pretrained(folder)
    # Uncropped, the padded rows would win every argmax.
    model.model.embed_tokens.weight.data[-13:] *= 40
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def runtime(folder: Path) -> Iterator[CheckpointRuntime]:
    runtime = open_runtime(folder)
    assert isinstance(runtime, CheckpointRuntime)
    yield runtime
    runtime.close()


@torch.no_grad()
def naive_logprobs(model: Qwen2ForCausalLM, ids: list[int], vocabulary: int) -> torch.Tensor:
    """Float64 log-softmax after every id, from one plain forward pass."""
    return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :, :vocabulary].double(), dim=-1)


def some_pairs(count: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of mixed lengths, many of which share their context."""
    generator = random.Random(1)
    pairs: list[tuple[list[int], list[int]]] = []
    while len(pairs) < count:
        context = generator.choices(range(290), k=generator.randint(1, 20))
        pairs += [(context, generator.choices(range(290), k=generator.randint(1, 5))) for _ in range(3)]
    generator.shuffle(pairs)
    return pairs[:count]


def naive_generate(model: Qwen2ForCausalLM, prompt: list[int], vocabulary: int, tokens: int, ends: tuple[int, ...]):
    """Greedy ids without a cache, and whether an end token came."""
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens:
        token = int(naive_logprobs(model, ids, vocabulary)[-1].argmax())
        if token in ends:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


def test_score_equals_one_forward_pass_a_pair(
    runtime: CheckpointRuntime, model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runtime, "BATCH_TOKENS", 150)
    monkeypatch.setattr(torch_runtime, "LOGIT_ROWS", 7)
    pairs = some_pairs(40)
    # One pair that greedy decoding does give.
    context = pairs[0][0]
    greedy, _ = naive_generate(model, context, runtime.vocabulary, 2, ())
    pairs.append((context, greedy))
    for (context, continuation), (score, is_greedy) in zip(pairs, runtime.score(pairs), strict=True):
        logprobs = naive_logprobs(model, context + continuation, runtime.vocabulary)[len(context) - 1 : -1]
        expected = logprobs[range(len(continuation)), continuation].sum().item()
        assert score == pytest.approx(expected, abs=2e-4)
        assert is_greedy == (logprobs.argmax(1).tolist() == continuation)
    assert runtime.score(pairs)[-1][1]


def test_logprobs_are_the_models_in_chunks(
    runtime: CheckpointRuntime, model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runtime, "LOGIT_ROWS", 8)
    ids = runtime.encode("".join(eval_tiny.sentences(3)))[:60]
    chunks = list(runtime.logprobs(ids))
    assert max(map(len, chunks)) == 8 and sum(map(len, chunks)) == len(ids)
    assert all(chunk.dtype == np.float32 for chunk in chunks)
    np.testing.assert_allclose(
        np.concatenate(chunks), naive_logprobs(model, ids, runtime.vocabulary).numpy(), atol=1e-4
    )


def test_generation_equals_decoding_alone_without_a_cache(
    runtime: CheckpointRuntime, model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_runtime, "BATCH_SEQUENCES", 4)
    generator = random.Random(3)
    prompts = [generator.choices(range(290), k=generator.randint(1, 25)) for _ in range(9)]
    # End tokens that do come, at different times: the commonest ids of what is generated.
    first = [naive_generate(model, prompt, runtime.vocabulary, 8, ())[0] for prompt in prompts]
    runtime.tokenizer.stop_ids = (first[0][3], first[4][1])
    answers = runtime.generate(prompts, max_tokens=8, stop=())
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, stopped = naive_generate(model, prompt, runtime.vocabulary, 8, runtime.tokenizer.stop_ids)
        assert (answer.ids, answer.stopped, answer.text) == (ids, stopped, runtime.decode(ids))
        assert max(answer.ids, default=0) < runtime.vocabulary
    assert {answer.stopped for answer in answers} == {True, False}


def test_a_stop_string_cuts_the_text_and_is_no_end_of_its_own(runtime: CheckpointRuntime) -> None:
    prompt = runtime.encode("春の町")
    whole = runtime.generate([prompt], max_tokens=12, stop=())[0]
    string = whole.text[2:4]
    cut = runtime.generate([prompt], max_tokens=12, stop=("never in there", string))[0]
    assert cut.text == whole.text[: whole.text.index(string)]
    assert len(cut.ids) < len(whole.ids) and not cut.stopped


def test_what_others_are_compared_with_is_computed_in_float32_on_an_accelerator_too() -> None:
    accelerator = replace(torch_runtime.machine_here(), device="cuda", compute_dtype="bfloat16")
    assert torch_runtime.dtype_on(accelerator, exact=True) == torch.float32
    assert torch_runtime.dtype_on(accelerator, exact=False) == torch.bfloat16
    assert torch_runtime.dtype_on(replace(accelerator, device="cpu"), exact=False) == torch.float32


def test_never_more_logits_than_a_chunk(runtime: CheckpointRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runtime, "LOGIT_ROWS", 5)
    seen: list[int] = []
    plain = runtime._log_softmax

    def record(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.numel() // hidden.size(-1))
        return plain(hidden)

    monkeypatch.setattr(runtime, "_log_softmax", record)
    runtime.score(some_pairs(20))
    assert seen and max(seen) == 5


def test_an_item_longer_than_the_context_is_refused(folder: Path) -> None:
    runtime = open_runtime(folder, context_tokens=16)
    with refuses("out-of-range", wanted="16 tokens", got="17 tokens"):
        runtime.score([([1] * 15, [2, 2]), ([1], [2])])
    with refuses("out-of-range", wanted="16 tokens", got="17 tokens"):
        runtime.generate([[1] * 10], max_tokens=7, stop=())
    assert runtime.generate([[1] * 10], max_tokens=6, stop=())


def test_what_is_no_artifact_is_named(tmp_path: Path, folder: Path) -> None:
    with refuses("not-found", got="missing.gguf"):
        open_runtime(tmp_path / "missing.gguf")
    (tmp_path / "empty").mkdir()
    with refuses("not-found", got="config.json"):
        open_runtime(tmp_path / "empty")
    (tmp_path / "model.mlpackage").mkdir()
    with refuses("unsupported", got="model.mlpackage"):
        open_runtime(tmp_path / "model.mlpackage")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    with pytest.raises(UserError, match="broken"):
        open_runtime(broken)


@given(st.lists(st.integers(1, 60)), st.integers(1, 200), st.integers(1, 9))
def test_batches_hold_every_item_once_within_the_budget(lengths: list[int], tokens: int, rows: int) -> None:
    batches = list(by_budget(lengths, tokens=tokens, rows=rows))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= tokens


def test_a_row_holds_each_continuation_at_its_own_positions() -> None:
    (row,) = score_rows([([7, 8], [1, 2]), ([7, 8], [3])])
    assert (row.ids, row.positions, row.parts) == ([7, 8, 1, 2, 3], [0, 1, 2, 3, 2], [0, 0, 1, 1, 2])
    assert [(target.pair, target.position, target.token) for target in row.targets] == [(0, 1, 1), (0, 2, 2), (1, 1, 3)]
    assert row.longest == 4


def test_the_first_stop_string_cuts() -> None:
    assert cut_at_stop("答えは7。\n次", ("次", "\n", "")) == "答えは7。"
    assert cut_at_stop("答え", ("\n",)) is None
