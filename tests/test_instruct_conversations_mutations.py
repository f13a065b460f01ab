"""Damaged conversation files and chat templates: refused with one clear error or counted, and soon."""

import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from text_tiny import TEXTS, mutated, tiny_tokenizer

from common.errors import UserError
from common.tokenizer import Tokenizer
from instruct.conversations.stage import ConversationsConfig, Selection

LAYOUTS = ("messages", "sharegpt", "alpaca")
QWEN_LIKE = """{%- if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% elif messages[0]['role'] != 'system' %}<|im_start|>system
あなたは助手です。<|im_end|>
{% endif %}{%- for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] | trim if message['role'] == 'user' else message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


def row(layout: str, number: int) -> dict[str, Any]:
    asked, said = f"{number}番。{TEXTS[number % len(TEXTS)]}", TEXTS[(number + 1) % len(TEXTS)]
    if layout == "alpaca":
        return {"instruction": asked, "input": "", "output": said}
    if layout == "sharegpt":
        return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]}
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], "tools": None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_conversation_files(tmp_path: Path, tokenizer_folder: Path, layout: str) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    data = "".join(json.dumps(row(layout, number), ensure_ascii=False) + "\n" for number in range(20)).encode()
    config = ConversationsConfig(sequence_tokens=512, max_bad_share=1.0)
    refused = kept = 0
    for seed in range(170):
        rng = random.Random(f"{layout}{seed}")
        damaged = mutated(data, rng)
        path = tmp_path / ("talks.jsonl.gz" if seed % 5 == 0 else "talks.jsonl")
        path.write_bytes(gzip.compress(damaged) if seed % 5 == 0 else damaged)
        started = time.monotonic()
        try:
            selection = Selection([path], config, tokenizer, tmp_path / "scratch")
            rows = [content for _, content in selection.kept()]
        except UserError as error:
            refused += 1
            assert str(error).count("\n") == 0 and str(error).startswith("wanted ")
        else:
            card = selection.card()
            assert card["rows_out"] == len(rows) == card["rows_in"] - sum(card["removed"].values())
            assert all(message["content"].strip() for content in rows for message in content["messages"])
            kept += len(rows)
        assert time.monotonic() - started < 10
    assert refused > 5 and kept > 500


def test_damaged_templates(tmp_path: Path, tokenizer_folder: Path) -> None:
    plain = Tokenizer.load(tokenizer_folder)
    talk = [
        {"role": "user", "content": " 春は？"},
        {"role": "assistant", "content": "三月から。"},
        {"role": "user", "content": "秋は？"},
        {"role": "assistant", "content": "九月から。"},
    ]
    refused = rendered = 0
    for seed in range(500):
        plain.save(tmp_path / "other")
        damaged = mutated(QWEN_LIKE.encode(), random.Random(f"template{seed}"))
        (tmp_path / "other" / "chat_template.jinja").write_bytes(damaged)
        started = time.monotonic()
        try:
            other = Tokenizer.load(tmp_path / "other")
            ids, mask = other.render(talk)
        except UserError as error:
            refused += 1
            assert str(error).count("\n") == 0 and str(error).startswith("wanted ")
        else:
            rendered += 1
            assert len(ids) == len(mask) and set(mask) <= {0, 1}
            supervised = other.decode([token for token, one in zip(ids, mask, strict=True) if one], skip_special=True)
            # Whatever the template became, nothing but what the assistant says is learnt.
            assert "春は" not in supervised and "秋は" not in supervised
        assert time.monotonic() - started < 10
    assert refused > 100 and rendered > 20
