"""The terminal chat: its loop with a scripted speaker, and a real tiny GGUF against the checkpoint it was made of."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import UserError
from eval.chat import only_model, talk
from eval.chat_speaker import ChatOptions, Message, Speaker, TooLong

ROOT = Path(__file__).parents[1]
OPTIONS = ChatOptions(context_tokens=512, max_tokens=12, temperature=0.0, threads=1)
needs_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama_cpp")


# ---- the loop ---------------------------------------------------------------------------------------------------


class Scripted:
    """Answers with the number of messages it was shown; fits at most `room` of them."""

    def __init__(self, room: int = 99) -> None:
        self.room = room
        self.shown: list[list[Message]] = []

    def answer(self, messages: list[Message]) -> Iterator[str]:
        if len(messages) > self.room:
            raise TooLong(wanted="a", got="b", next_step="c")
        self.shown.append(list(messages))
        yield "reply "
        yield str(len(messages))


def converse(*lines: str, opening: list[Message] | None = None, room: int = 99) -> tuple[Scripted, str]:
    scripted, said = Scripted(room), []
    talk(scripted.answer, iter([line + "\n" for line in lines]), opening or [], say=said.append)
    return scripted, "".join(said)


def turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def test_each_question_is_answered_with_the_conversation_in_view() -> None:
    scripted, said = converse("one", "  ", "two ")
    assert said == "reply 1\nreply 3\n"
    assert scripted.shown[1] == [turn("user", "one"), turn("assistant", "reply 1"), turn("user", "two")]


def test_reset_keeps_the_system_prompt_and_nothing_else() -> None:
    scripted, _ = converse("one", "/reset", "two", opening=[turn("system", "s")])
    assert scripted.shown == [[turn("system", "s"), turn("user", text)] for text in ("one", "two")]


def test_exit_ends_and_an_unknown_command_is_no_question() -> None:
    scripted, said = converse("/help", "/exit", "never")
    assert scripted.shown == [] and "/reset" in said


def test_a_conversation_that_is_too_long_loses_its_oldest_exchange() -> None:
    scripted, _ = converse("one", "two", "three", opening=[turn("system", "s")], room=4)
    assert [message["content"] for message in scripted.shown[-1]] == ["s", "two", "reply 4", "three"]


def test_a_single_question_that_is_too_long_is_the_user_s() -> None:
    with pytest.raises(TooLong):
        converse("one", opening=[turn("system", "s")], room=1)


def test_at_a_terminal_a_question_that_is_too_long_is_said_and_forgotten() -> None:
    scripted, said = Scripted(room=4), []

    def answer(messages: list[Message]) -> Iterator[str]:
        if "long" in messages[-1]["content"]:
            raise TooLong(wanted="a", got="b", next_step="c")
        return scripted.answer(messages)

    talk(answer, iter(["one", "long", "two"]), [], say=said.append, goes_on=True)
    assert [message["content"] for message in scripted.shown[-1]] == ["one", "reply 1", "two"]
    assert "wanted a; got b; next: c\n" in said


def test_the_one_file_for_phones_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got none like .*run make tinyswallow"):
        only_model(tmp_path)
    for name in ("mini/Mini-Q4_K_M.gguf", "mini/Mini-F16.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert only_model(tmp_path) == tmp_path / "mini" / "Mini-Q4_K_M.gguf"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "Other-Q4_K_M.gguf").touch()
    with pytest.raises(UserError, match=r"got .*Mini-Q4_K_M\.gguf, .*Other-Q4_K_M\.gguf.*make chat MODEL=FILE"):
        only_model(tmp_path)


# ---- a real file ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from eval_tiny import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from eval_tiny import write_gguf

    return write_gguf(checkpoint, tmp_path_factory.mktemp("gguf") / "Tiny-F16.gguf")


def by_transformers(checkpoint: Path, messages: list[Message]) -> str:
    """The same answer by the checkpoint: its own template, greedy, at the GGUF's precision of weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lm = AutoModelForCausalLM.from_pretrained(checkpoint)
    for weight in lm.parameters():
        if weight.ndim == 2:
            weight.data = weight.data.half().float()
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        ids = prompt["input_ids"][0].tolist()
        start = len(ids)
        while len(ids) < start + OPTIONS.max_tokens:
            # The padded logits are no tokens of the file.
            logits = lm(torch.tensor([ids])).logits[0, -1, : len(tokenizer)]
            ids.append(int(logits.argmax()))
            if ids[-1] in (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")):
                break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@needs_llama
def test_a_file_answers_as_its_checkpoint_does(checkpoint: Path, model: Path) -> None:
    messages = [turn("system", "山の村"), turn("user", "春の町に川がある?")]
    with Speaker(model, OPTIONS) as speaker:
        for question in ("リンゴは?", "The river?", None):
            pieces = list(speaker.answer(messages))
            assert "".join(pieces) == by_transformers(checkpoint, messages)
            assert len(pieces) > 1, "the answer comes piece by piece"
            messages += [turn("assistant", "".join(pieces)), turn("user", question or "")]


def command(*arguments: str, typed: str = "", folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "eval.chat", *arguments],
        input=typed,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )


@needs_llama
def test_piped_questions_give_answers_only(checkpoint: Path, model: Path) -> None:
    done = command(str(model), "--max-tokens", "12", "--threads", "1", typed="春の町\n/reset\n春の町\n/exit\nnever\n")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == 2 * (by_transformers(checkpoint, [turn("user", "春の町")]) + "\n")


@needs_llama
def test_a_question_longer_than_the_context_is_one_line_and_2(model: Path) -> None:
    done = command(str(model), "--context", "64", "--max-tokens", "4", typed="春の町に川がある。" * 100)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "wanted a question that fits the context" in done.stderr and "Traceback" not in done.stderr


@needs_llama
@pytest.mark.parametrize("damage", ["cut header", "cut tensors", "text", "no template"])
def test_a_malformed_file_is_one_line_with_its_name(checkpoint: Path, model: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.gguf"
    content = model.read_bytes()
    if damage == "no template":
        content = content.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX")
    path.write_bytes(
        {"cut header": content[:3000], "cut tensors": content[:-5000], "text": b"hello"}.get(damage, content)
    )
    done = command(str(path), typed="x\n")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: wanted a GGUF chat model") and "bad.gguf" in done.stderr


@needs_llama
def test_questions_that_are_no_utf_8_are_not_the_file_s_fault(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eval.chat", str(model), "--max-tokens", "2"],
        input=b"\xe6\x98\xa5\n\xff\xfe\n",
        capture_output=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert b"wanted questions in UTF-8; got line 2: " in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-tokens", "0"), ("--threads", "-4"), ("--context", "0"), ("--temperature", "-3"), ("--temperature", "nan")],
)
def test_a_wrong_option_is_one_line_with_its_name(option: str, value: str) -> None:
    done = command(option, value)
    assert done.returncode == 2 and done.stderr.startswith(f"error: wanted {option} of ")
    assert f"got {value}" in done.stderr and done.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = command(str(tmp_path / "absent.gguf"))
    assert done.returncode == 2 and "absent.gguf; got no such file" in done.stderr
    done = command(folder=tmp_path)
    assert done.returncode == 2 and "run make tinyswallow first" in done.stderr


def test_an_abort_of_the_child_is_one_line_with_the_file_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's GGML_ASSERT, by a module of its name that does what it does."""
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "llama_chat_format.py").write_text("Jinja2ChatFormatter = None")
    (tmp_path / "llama_cpp" / "__init__.py").write_text(
        "import os, sys\n"
        "def Llama(*arguments, **options):\n"
        "    os.write(2, b'ggml.c:1: GGML_ASSERT(ne > 0) failed\\n')\n"
        "    os.abort()\n"
    )
    (tmp_path / "bad.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))  # the child takes over the parent's path
    with pytest.raises(UserError, match=rf"bad\.gguf: llama\.cpp died with {signal.SIGABRT.name} .*GGML_ASSERT"):
        Speaker(tmp_path / "bad.gguf", OPTIONS).__enter__()
