"""A thousand conversations, real and generated: rendered as transformers does, the answers' tokens and no other masked.

Real ones come from ../shared/data, generated ones from the embedded world and, with system prompts, tools, calls and
odd white space, from a seed.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED_DATA
from text_tiny import tiny_tokenizer
from toy_world_sample import sample
from transformers import AutoTokenizer

from common.tokenizer import Tokenizer

END = "<|im_end|>"
TOOLS = [
    {"type": "function", "function": {"name": name, "description": what, "parameters": {"type": "object"}}}
    for name, what in (("tenki", "天気を調べる"), ("jikan", "時間を調べる"))
]
Talk = dict[str, Any]


def generated(count: int) -> list[Talk]:
    """Conversations with everything that a template treats apart."""
    rng = random.Random(0)
    parts = [
        "はい。",
        "春は\n三月から。",
        " 前に空白",
        "後に空白 ",
        "\n\n改行から",
        "123,456円",
        "```python\nx = 1\n```",
        "🚀👩‍👩‍👧",
    ]

    def said() -> str:
        return "".join(rng.choices(parts, k=rng.randint(1, 4)))

    talks: list[Talk] = []
    for _ in range(count):
        messages: list[dict[str, Any]] = [{"role": "system", "content": said()}] if rng.random() < 0.4 else []
        for _ in range(rng.randint(1, 4)):
            messages.append({"role": "user", "content": said()})
            if rng.random() < 0.2:
                call = {"type": "function", "function": {"name": "tenki", "arguments": {"町": said()}}}
                messages.append({"role": "assistant", "content": rng.choice(["", said()]), "tool_calls": [call]})
                messages += [{"role": "tool", "content": said()} for _ in range(rng.randint(1, 2))]
            messages.append({"role": "assistant", "content": said()})
        talks.append({"messages": messages, "tools": TOOLS if rng.random() < 0.3 else None})
    return talks


def real(count: int) -> list[Talk]:
    talks: list[Talk] = []
    for name in ("instruction_ja", "aio_quiz"):
        lines = (SHARED_DATA / "sft_ja" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in random.Random(1).sample(lines, count // 2)]
        talks += [{"messages": row["messages"], "tools": None} for row in rows]
    return talks


def check(tokenizer: Tokenizer, talks: list[Talk]) -> None:
    hf: Any = AutoTokenizer.from_pretrained(str(tokenizer.folder), local_files_only=True)
    for talk in talks:
        ids, mask = tokenizer.render(talk["messages"], tools=talk["tools"])
        assert ids == hf.apply_chat_template(talk["messages"], tools=talk["tools"], tokenize=True, return_dict=False)
        runs: list[list[int]] = []
        before = 0
        for token, one in zip(ids, mask, strict=True):
            if one:
                runs = [*runs, [token]] if not before else [*runs[:-1], [*runs[-1], token]]
            before = one
        answers = [message for message in talk["messages"] if message["role"] == "assistant"]
        assert len(runs) == len(answers)
        for run, answer in zip(runs, answers, strict=True):
            text = hf.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            assert text.endswith(END) and text.count(END) == 1
            body, spoken = text.removesuffix(END), answer["content"]
            if answer.get("tool_calls"):
                assert body.lstrip("\n").startswith(spoken.lstrip("\n")) and "<tool_call>" in body
            else:
                # Line breaks that merge with the header's belong to the prompt.
                assert body == spoken or (spoken.startswith("\n") and body.lstrip("\n") == spoken.lstrip("\n"))


def test_a_thousand_with_the_embedded_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path / "tokenizer"))
    world = [{"messages": row["messages"], "tools": None} for row in sample().conversations[:700]]
    assert len(world) == 700
    check(tokenizer, world + generated(300))


@pytest.mark.shared_data
def test_a_thousand_with_the_real_tokenizer() -> None:
    tokenizer = Tokenizer.load(SHARED_DATA / "qwen2.5_tokenizer")
    world = [{"messages": row["messages"], "tools": None} for row in sample().conversations[:200]]
    check(tokenizer, real(500) + world + generated(300))
