"""The llama.cpp runtime against the checkpoint that its file was made from, and its child process's end."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import eval_tiny
import gguf
import numpy as np
import pytest
from errors_tiny import refuses

from eval.runtimes import llama_engine, open_runtime
from eval.runtimes.llama_process import LlamaCppRuntime
from eval.runtimes.protocol import Runtime, by_context, score_waves


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    eval_tiny.write_checkpoint(folder / "checkpoint")
    eval_tiny.write_gguf(folder / "checkpoint", folder / "tiny-F16.gguf")
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Iterator[Runtime]:
    runtime = open_runtime(folder / "checkpoint")
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Iterator[Runtime]:
    runtime = open_runtime(folder / "tiny-F16.gguf", kv="f32")
    yield runtime
    runtime.close()


def test_text_is_the_files_own_and_the_checkpoints(runtime: Runtime, checkpoint: Runtime) -> None:
    texts = [*eval_tiny.sentences(20), "", "\n\n  x", "絵文字🍎と\u3000空白", "a<|im_end|>b<|endoftext|>"]
    for text in texts:
        assert runtime.encode(text) == checkpoint.encode(text)
        assert runtime.decode(runtime.encode(text)) == text
    assert (runtime.vocabulary, runtime.context_tokens) == (checkpoint.vocabulary, checkpoint.context_tokens)
    assert runtime.document_end_id == checkpoint.document_end_id
    half = runtime.encode("🍎")[:-1]
    assert runtime.decode(half) == checkpoint.decode(half)


def test_the_chat_prompt_is_rendered_by_the_files_template(runtime: Runtime, checkpoint: Runtime) -> None:
    messages = [
        {"role": "system", "content": "短く答えてください。"},
        {"role": "user", "content": "川はどこですか。\n<|im_end|>と書いて\ue000ください<|im_start|>"},
        {"role": "assistant", "content": "春の町です。"},
        {"role": "user", "content": "ありがとう。"},
    ]
    assert runtime.render(messages) == checkpoint.render(messages)
    assert runtime.render(messages[-1:]) == checkpoint.render(messages[-1:])
    text = runtime.decode(runtime.render(messages[-1:]), skip_special=False)
    assert text == "<|im_start|>user\nありがとう。<|im_end|>\n<|im_start|>assistant\n"
    assert runtime.decode(runtime.render(messages[-1:])) == "user\nありがとう。\nassistant\n"


def test_logprobs_are_the_checkpoints(runtime: Runtime, checkpoint: Runtime) -> None:
    ids = runtime.encode("".join(eval_tiny.sentences(12)))[:400]
    assert len(ids) > 256  # more than one chunk
    ours = np.concatenate(list(runtime.logprobs(ids)))
    theirs = np.concatenate(list(checkpoint.logprobs(ids)))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.exp(ours).sum(1), 1, atol=1e-5)
    # llama.cpp rounds activations to float16 in front of a float16 matrix.
    np.testing.assert_allclose(ours, theirs, atol=0.1)
    assert (np.exp(theirs) * (theirs - ours)).sum(1).mean() < 1e-4


def test_the_cache_has_the_type_that_was_asked_for(folder: Path, runtime: Runtime) -> None:
    half = open_runtime(folder / "tiny-F16.gguf")
    ids = runtime.encode("".join(eval_tiny.sentences(4)))
    exact, rounded = (np.concatenate(list(each.logprobs(ids))) for each in (runtime, half))
    half.close()
    assert 0 < np.abs(exact - rounded).max() < 0.1  # float16 keys and values move the figures, a little
    with refuses("unknown-name", wanted="f16, f32", got="q8_0"):
        open_runtime(folder / "tiny-F16.gguf", kv="q8_0")


def test_no_more_answers_at_a_time_than_the_cache_is_meant_to_hold(
    folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [runtime.encode(text)[:300] for text in ("".join(eval_tiny.sentences(12)), "春の町", "川は")]
    wanted = runtime.generate(prompts, max_tokens=8, stop=())
    monkeypatch.setattr(llama_engine, "CACHE_TOKENS", 1024)
    engine = llama_engine.Engine(str(folder / "tiny-F16.gguf"), kv="f32", threads=1)
    assert engine.generate(prompts, max_tokens=8, stop=()) == wanted
    assert engine._shape == (512, 2)


def test_score_and_generate_are_the_checkpoints(runtime: Runtime, checkpoint: Runtime) -> None:
    generator = random.Random(2)

    def draw(least: int, most: int) -> list[int]:
        return generator.choices(range(290), k=generator.randint(least, most))

    # 40 continuations of one context are more than there are sequences; 70 others make several waves.
    shared = draw(5, 20)
    pairs = [(shared, draw(1, 4)) for _ in range(40)] + [(draw(1, 30), draw(1, 6)) for _ in range(70)]
    ours, theirs = runtime.score(pairs), checkpoint.score(pairs)
    np.testing.assert_allclose([score for score, _ in ours], [score for score, _ in theirs], atol=0.2)

    prompts = [draw(1, 40) for _ in range(37)]
    generated = runtime.generate(prompts, max_tokens=10, stop=("の",))
    expected = checkpoint.generate(prompts, max_tokens=10, stop=("の",))
    # A near tie may fall either way and changes all that follows; it is rare.
    assert sum(a == b for a, b in zip(generated, expected, strict=True)) >= 34
    greedy = [(prompt, answer.ids[:2]) for prompt, answer in zip(prompts, generated, strict=True) if answer.ids]
    assert sum(is_greedy for _, is_greedy in runtime.score(greedy)) >= len(greedy) - 1


def test_items_longer_than_the_context_are_refused(folder: Path) -> None:
    runtime = open_runtime(folder / "tiny-F16.gguf", context_tokens=16)
    with refuses("out-of-range", wanted="16 tokens", got="17 tokens"):
        runtime.score([([1] * 15, [2, 2])])
    runtime.close()


def test_a_file_that_llama_cpp_refuses_is_named_with_the_reason(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "tiny-F16.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    with refuses("wrong-format", got="cut.gguf: ") as caught:
        open_runtime(cut)
    assert re.search("data|bounds|corrupt", caught[0].got), "with llama.cpp's own reason"
    other = tmp_path / "other.gguf"
    other.write_bytes(b"no such thing" * 100)
    with refuses("wrong-format", got="other.gguf: "):
        open_runtime(other)


def test_an_abort_is_that_files_error_and_the_rest_goes_on(
    folder: Path, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = gguf.GGUFWriter.add_layer_norm_rms_eps
    monkeypatch.setattr(gguf.GGUFWriter, "add_layer_norm_rms_eps", lambda self, _: good(self, -1.0))
    bad = open_runtime(eval_tiny.write_gguf(folder / "checkpoint", tmp_path / "bad.gguf"))
    with refuses("failed", got="bad.gguf: ") as caught:
        bad.generate([[1, 2]], max_tokens=2, stop=())
    assert re.search(r"SIGABRT \(ops\.cpp.*GGML_ASSERT\(eps", caught[0].got), "without the folders of ops.cpp"
    with refuses("failed", got=caught[0].got):
        bad.encode("again")
    bad.close()
    assert runtime.generate([[1, 2]], max_tokens=2, stop=())


def test_a_file_without_template_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.GGUFWriter, "add_chat_template", lambda *_: None)
    runtime = open_runtime(eval_tiny.write_gguf(folder / "checkpoint", tmp_path / "plain.gguf"))
    with refuses("wrong-format", got="plain.gguf: "):
        runtime.render([{"role": "user", "content": "x"}])
    assert runtime.encode("春")  # it goes on
    runtime.close()


def test_a_defect_in_the_child_is_no_fault_of_the_file(folder: Path) -> None:
    with closing(LlamaCppRuntime(folder / "tiny-F16.gguf")) as runtime:
        with pytest.raises(RuntimeError, match=r"(?s)tiny-F16\.gguf.*Traceback.*no_such_function"):
            runtime.call("no_such_function")
        assert runtime.encode("春")


@pytest.mark.parametrize("busy", ["time.sleep(60)", "r.score([([1, 2, 3], [4] * 60)] * 20_000)"])
def test_the_child_ends_with_its_parent_even_killed(folder: Path, busy: str) -> None:
    code = (
        "import sys, time; from pathlib import Path; from eval.runtimes import open_runtime;"
        f"r = open_runtime(Path({str(folder / 'tiny-F16.gguf')!r}));"
        f"print(r.child.pid, flush=True); {busy}"
    )
    root = Path(__file__).parents[1]
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1)  # into the call
    assert _runs(child) and parent.poll() is None
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.1)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    # A zombie that nobody waits for has ended as well.
    return not (stat.is_file() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_closing_ends_the_child(folder: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    runtime = open_runtime(folder / "tiny-F16.gguf")
    assert isinstance(runtime, LlamaCppRuntime)
    runtime.close()
    assert runtime.child.returncode == 0
    assert signal.getsignal(signal.SIGINT) is before, "the child ignores Ctrl-C, and only the child"


def test_closing_in_the_middle_of_an_answer_ends_the_child_at_once(folder: Path) -> None:
    runtime = LlamaCppRuntime(folder / "tiny-F16.gguf")
    prompt = runtime.render([{"role": "user", "content": "春の町"}])
    pieces = runtime.stream(prompt, max_tokens=400, temperature=0.0)
    next(pieces)
    runtime.close()
    assert runtime.child.returncode == -signal.SIGKILL
    del pieces  # says nothing to the child that is gone


def test_waves_hold_every_token_once_and_no_more_sequences_than_there_are() -> None:
    generator = random.Random(5)
    contexts = [generator.choices(range(9), k=generator.randint(1, 4)) for _ in range(6)]
    draw = lambda: (generator.choice(contexts), generator.choices(range(9), k=generator.randint(1, 5)))  # noqa: E731
    pairs = [draw() for _ in range(60)]
    groups = by_context(pairs, most=4)
    asked: dict[int, list[int]] = {}
    for wave in score_waves(pairs, groups, sequences=7, logit_rows=3):
        held: dict[int, list[int]] = {}
        for number, step in enumerate([wave.contexts, *wave.continuations]):
            if number == 1:
                held |= {target: list(held[source]) for source, target in wave.copies}
            assert number == 0 or len(step.positions) <= 3
            predicting: list[list[int]] = []
            for position in step.positions:
                tokens = held.setdefault(position.sequence, [])
                assert position.pos == len(tokens)
                tokens.append(position.token)
                if position.wants_logits:
                    predicting.append(list(tokens))
            for target in step.targets:
                done = asked.setdefault(target.pair, [])
                assert predicting[target.position] == [*pairs[target.pair][0], *done]
                done.append(target.token)
        assert max(held) < 7
    assert asked == {index: list(continuation) for index, (_, continuation) in enumerate(pairs)}
