"""The conversations stage on small files: what is a conversation, what is supervised, and what bad input does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors_tiny import refuses
from text_tiny import read_gzip, tiny_tokenizer, workspace, write_rows

from common.documents import SPLITS, Shares
from common.errors import UserError
from common.packing import PackedRows
from common.provenance import Terms, write_terms
from common.tokenizer import Tokenizer
from instruct.__main__ import main
from instruct.conversations import ConversationsConfig, conversations, fault_of
from instruct.conversations.layouts import ConversationSource

CONFIG = ConversationsConfig(sequence_tokens=128, shares=Shares(calibration=0.1, validation=0.1, test=0.1))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


def said(*turns: str, system: str | None = None) -> dict[str, Any]:
    """User and assistant in turn."""
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def many(count: int) -> list[dict[str, Any]]:
    """Single and multi-turn, with and without a system prompt."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        turns = (f"{number}たす1は？", f"{number + 1}です。", "春は？", "桜が咲きます。")[: 2 + 2 * (number % 2)]
        rows.append(said(*turns, system="町の人です。" if number % 3 == 0 else None) | {"id": f"c{number}"})
    return rows


CALL = {"function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ("user:a assistant:b", None),
        ("system:s user:a assistant:b user:c assistant:d", None),
        ("user:a assistant+call: tool:t tool:t assistant:b", None),
        ("user:a", "roles out of order"),
        ("assistant:b", "roles out of order"),
        ("system:s", "roles out of order"),
        ("system:s assistant:b", "roles out of order"),
        ("user:a user:b assistant:c", "roles out of order"),
        ("user:a system:s assistant:c", "roles out of order"),
        ("user:a assistant:b assistant:c", "roles out of order"),
        ("user:a assistant:b user:c", "roles out of order"),
        ("tool:t assistant:b", "roles out of order"),
        ("user:a bot:b", "unknown role"),
        ("user: assistant:b", "empty turn"),
        ("user:a assistant:", "empty turn"),
        ("system: user:a assistant:b", "empty turn"),
        ("user:a assistant+call: tool: assistant:b", "empty turn"),
    ],
)
def test_what_is_a_conversation(turns: str, fault: str | None) -> None:
    messages: list[dict[str, Any]] = []
    for turn in turns.split():
        role, content = turn.split(":")
        calls = {"tool_calls": [CALL]} if role.endswith("+call") else {}
        messages.append({"role": role.removesuffix("+call"), "content": content} | calls)
    assert fault_of(messages) == fault


def test_messages_of_the_wrong_form() -> None:
    assert fault_of(["hello"]) == "a message without role"
    assert fault_of([{"content": "a"}]) == "a message without role"
    assert fault_of([{"role": "user", "content": ["a"]}]) == "content that is not text"
    assert fault_of([{"role": "user", "content": " \n"}]) == "empty turn"
    assert fault_of([{"role": "user"}]) == "empty turn"


def test_a_tool_answers_only_a_call() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "c"},
    ]
    assert fault_of(messages) == "roles out of order"
    messages[1] = {"role": "assistant", "content": "b", "tool_calls": [CALL]}
    assert fault_of(messages) is None
    messages[2] = {"role": "user", "content": "t"}
    assert fault_of(messages) == "roles out of order"


def test_rows_are_what_the_template_renders_and_only_answers_count(tmp_path: Path, tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    source = write_rows(tmp_path / "world" / "conversations.jsonl", many(60)).parent
    facts = conversations(CONFIG, workspace(tmp_path / "out"), source, tokenizer_folder)
    everything: list[dict[str, Any]] = []
    for split in SPLITS:
        kept = read_gzip(tmp_path / "out" / "documents" / f"{split}-00000.jsonl.gz")
        everything += kept
        arrays = [
            np.load(tmp_path / "out" / "packed" / split / f"{name}.npy") for name in ("tokens", "doc_ids", "weights")
        ]
        found = sorted(
            (tokens[doc_ids == number].tolist(), weights[doc_ids == number].tolist())
            for tokens, doc_ids, weights in zip(*arrays, strict=True)
            for number in range(1, doc_ids.max() + 1)
        )
        rendered = [tokenizer.render(row["messages"]) for row in kept]
        assert found == sorted((ids, [100 * one for one in mask]) for ids, mask in rendered)
        for (ids, weights), row in zip(rendered, kept, strict=True):
            supervised = tokenizer.decode(
                [token for token, one in zip(ids, weights, strict=True) if one], skip_special=False
            )
            answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
            assert supervised == "".join(answer + "<|im_end|>" for answer in answers)
        assert facts["splits"][split]["documents"] == len(kept) > 0
    assert sorted(everything, key=lambda row: int(row["id"][1:])) == many(60)
    assert Tokenizer.load(tmp_path / "out" / "tokenizer").sha256 == tokenizer.sha256


def test_card_counts_what_was_removed_and_why(tmp_path: Path, tokenizer_folder: Path) -> None:
    bad = [said("a"), said("a", ""), {"messages": []}, {"text": "a"}]
    rows = [*many(40), many(40)[7], said("春" * 500, "秋"), *bad]
    source = write_rows(tmp_path / "mine.jsonl.gz", rows)
    facts = conversations(replace(CONFIG, max_bad_share=0.1), workspace(tmp_path / "out"), source, tokenizer_folder)
    assert facts["removed"] == {
        "empty messages": 1,
        "empty turn": 1,
        "no field messages": 1,
        "roles out of order": 1,
        "exact duplicate": 1,
        "longer than a row": 1,
    }
    assert (facts["rows_in"], facts["rows_out"]) == (46, 40)
    card = json.loads((tmp_path / "out" / "data_card.json").read_text())
    assert {name: facts[name] for name in card} == card
    with refuses("wrong-format", got="4 of 46"):
        conversations(CONFIG, workspace(tmp_path / "again"), source, tokenizer_folder)


def test_a_conversation_as_long_as_a_row_is_kept(tmp_path: Path, tokenizer_folder: Path) -> None:
    row = said("春は？", "桜が咲きます。")
    length = len(Tokenizer.load(tokenizer_folder).render(row["messages"])[0])
    source = write_rows(tmp_path / "mine.jsonl", [row])
    conversations(replace(CONFIG, sequence_tokens=length), workspace(tmp_path / "out"), source, tokenizer_folder)
    assert PackedRows(tmp_path / "out" / "packed" / "train").num_tokens == length
    with refuses("empty", wanted=f"{length - 1} tokens", got="(1 are longer)"):
        config = replace(CONFIG, sequence_tokens=length - 1)
        conversations(config, workspace(tmp_path / "short"), source, tokenizer_folder)


def test_tools_reach_the_template(tmp_path: Path, tokenizer_folder: Path) -> None:
    tool = {"type": "function", "function": {"name": "tenki", "description": "a", "parameters": {}}}
    source = write_rows(tmp_path / "mine.jsonl", [said("春は？", "桜です。") | {"tools": [tool]}])
    conversations(replace(CONFIG, sequence_tokens=512), workspace(tmp_path / "out"), source, tokenizer_folder)
    tokens = np.load(tmp_path / "out" / "packed" / "train" / "tokens.npy")[0].tolist()
    assert '"name": "tenki"' in Tokenizer.load(tokenizer_folder).decode(tokens)


def test_no_conversation_and_no_template(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("")
    with refuses("empty", got="mine.jsonl"):
        conversations(CONFIG, workspace(tmp_path / "out"), tmp_path / "mine.jsonl", tokenizer_folder)
    write_rows(tmp_path / "mine.jsonl", many(3))
    Tokenizer.load(tokenizer_folder).save(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    with refuses("not-found", next_step="chat_template.jinja"):
        conversations(CONFIG, workspace(tmp_path / "out"), tmp_path / "mine.jsonl", tmp_path / "plain")


def test_command(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = write_rows(tmp_path / "mine.jsonl", many(30))
    options = ["--tokenizer", tokenizer_folder, "--sequence-tokens", 96]
    main([str(argument) for argument in ("conversations", source, *options, "--out", tmp_path / "made")])
    assert PackedRows(tmp_path / "made" / "packed" / "train").sequence_tokens == 96
    absent = tmp_path / "absent.jsonl"
    with pytest.raises(UserError) as raised:
        main([str(argument) for argument in ("conversations", absent, *options, "--out", tmp_path / "no")])
    assert str(absent) in raised.value.got


def test_what_stands_beside_a_turn_makes_no_second_conversation(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = many(20)
    copies = [
        {"messages": [message | {"turn_id": place, "ip": "x"} for place, message in enumerate(row["messages"])]}
        for row in rows
    ]
    source = write_rows(tmp_path / "talks.jsonl", [*rows, *copies])
    facts = conversations(CONFIG, workspace(tmp_path / "out"), source, tokenizer_folder)
    assert facts["removed"]["exact duplicate"] == 20 and facts["rows_out"] == 20
    for split in SPLITS:
        for row in read_gzip(tmp_path / "out" / "documents" / f"{split}-00000.jsonl.gz"):
            assert all(message.keys() == {"role", "content"} for message in row["messages"])


def test_turns_of_a_table_may_hold_times(tmp_path: Path, tokenizer_folder: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    moment = datetime.datetime(2026, 1, 2)
    rows = [{"messages": [message | {"at": moment} for message in row["messages"]], "id": row["id"]} for row in many(9)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "talks.parquet")
    facts = conversations(CONFIG, workspace(tmp_path / "out"), tmp_path / "talks.parquet", tokenizer_folder)
    assert facts["rows_out"] == 9


def test_the_card_does_not_quote_a_benchmark(tmp_path: Path, tokenizer_folder: Path) -> None:
    asked = "江戸時代に川越の町で喜多院の再建を指図した僧は誰ですか。"
    item = {"id": "q1", "shape": "short_answer", "group": None, "context": None, "question": asked, "choices": None}
    write_rows(tmp_path / "benchmarks" / "questions.jsonl", [item | {"answers": ["天海"]}])
    source = write_rows(tmp_path / "talks.jsonl", [*many(9), said(asked, "天海です。")])
    config = replace(CONFIG, benchmarks=tmp_path / "benchmarks")
    facts = conversations(config, workspace(tmp_path / "out"), source, tokenizer_folder)
    assert facts["contamination"] == {"questions": 1} and facts["rows_out"] == 9
    card = (tmp_path / "out" / "data_card.json").read_text(encoding="utf-8")
    assert "(holds an item of questions)" in card and "喜多院" not in card


def test_a_folders_own_terms_are_taken(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = write_rows(tmp_path / "mine" / "conversations.jsonl", many(9)).parent
    write_terms(folder, Terms(name="my talks", licence="my own"))
    facts = conversations(CONFIG, workspace(tmp_path / "out"), folder, tokenizer_folder)
    assert [(one["name"], one["licence"]) for one in facts["sources"]] == [("my talks", "my own")]


def test_what_a_template_leaves_out_is_counted_and_its_date_recorded(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tmp_path / "tokenizer"
    Tokenizer.load(tokenizer_folder).save(tokenizer)
    file = tokenizer / "chat_template.jinja"
    cut = file.read_text().replace("message.content", "message.content.split('</think>')[-1]")
    assert "</think>" in cut
    file.write_text("{{ strftime_now('%Y') }}" + cut)
    rows = [said("春は？", f"<think>{number}</think>桜が{number}本咲きます。") for number in range(9)]
    config = replace(CONFIG, sequence_tokens=512)
    facts = conversations(config, workspace(tmp_path / "out"), write_rows(tmp_path / "talks.jsonl", rows), tokenizer)
    assert facts["rows_out"] == 9
    assert facts["sources"][0]["truncated"] == {"answers of which the chat template leaves out a part": 9}
    assert [step["settings"] for step in facts["steps"] if step["step"] == "chat template"] == [{"date": "2024-07-26"}]
    (warning,) = facts["warnings"]
    assert "a part of 9 of 9 answers of talks.jsonl" in warning
    plain = write_rows(tmp_path / "plain.jsonl", [said("夏は？", f"海で{number}回泳ぎます。") for number in range(9)])
    mixed = tuple(
        ConversationSource(name=path.stem, files=(path,), weight=weight)
        for path, weight in ((tmp_path / "talks.jsonl", 1), (plain, 9))
    )
    facts = conversations(replace(config, sources=mixed), workspace(tmp_path / "mixed"), tokenizer)
    assert [source["rows_out"] for source in facts["sources"]] == [1, 9]
    (warning,) = facts["warnings"]
    assert "a part of 9 of 9 answers of talks" in warning
