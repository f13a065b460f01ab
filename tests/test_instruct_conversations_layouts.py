"""Chat files in every layout that is known, as their publishers write them: the same conversation from each."""

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_tiny import read_gzip, tiny_tokenizer, workspace, write_rows

from common.documents import SPLITS, Shares
from common.errors import UserError
from common.provenance import Terms
from instruct.conversations import ConversationsConfig, LmsysConfig, conversations
from instruct.conversations.counts import RuleCounts
from instruct.conversations.layouts import files_of, read_chat

CONFIG = ConversationsConfig(sequence_tokens=256, shares=Shares(calibration=0, validation=0, test=0))
TURNS = (("user", "春は？"), ("assistant", "桜が咲きます。"), ("user", "秋は？"), ("assistant", "祭りです。"))
SHARE_GPT = {"user": "human", "assistant": "gpt", "system": "system"}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


def messages(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def sharegpt(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"from": SHARE_GPT[role], "value": content} for role, content in turns]


def loaded(file: Path, config: LmsysConfig | None = None) -> tuple[list[dict[str, Any]], RuleCounts]:
    """What a file's loader yields, and what it booked."""
    counts = RuleCounts(terms=Terms(name="mine"))
    rows = list(read_chat(files_of([file], file.parent), counts, config or LmsysConfig()))
    return rows, counts


SYSTEM = ("system", "町の人です。")
ONE = TURNS[:2]
WITH_CONTEXT = [("user", "訳して\n\nspring"), ("assistant", "春")]
LAYOUTS: dict[str, tuple[dict[str, Any], Any]] = {
    "messages": ({"messages": messages(*TURNS)}, TURNS),
    "messages with system": ({"messages": messages(SYSTEM, *TURNS)}, [SYSTEM, *TURNS]),
    "conversation, as Swallow's SFT files": ({"conversation": messages(*TURNS)}, TURNS),
    "conversations with roles, as llm-jp's magpie": ({"conversations": messages(*TURNS)}, TURNS),
    "ShareGPT": ({"conversations": sharegpt(*TURNS)}, TURNS),
    "ShareGPT with system": ({"conversations": sharegpt(SYSTEM, *TURNS)}, [SYSTEM, *TURNS]),
    "ShareGPT, system apart": ({"system": SYSTEM[1], "conversations": sharegpt(*TURNS)}, [SYSTEM, *TURNS]),
    "Alpaca": ({"instruction": "春は？", "input": "", "output": "桜が咲きます。"}, ONE),
    "Alpaca without input": ({"instruction": "春は？", "output": "桜が咲きます。"}, ONE),
    "Alpaca with input": ({"instruction": "訳して", "input": "spring", "output": "春"}, WITH_CONTEXT),
    "Dolly": ({"instruction": "訳して", "context": "spring", "response": "春", "category": "x"}, WITH_CONTEXT),
    "magpie pairs": ({"instruction": "春は？", "response": "桜が咲きます。", "score": 5}, ONE),
    "prompt and response": ({"prompt": "春は？", "response": "桜が咲きます。"}, ONE),
    "question and answer": ({"question": "春は？", "answer": "桜が咲きます。"}, ONE),
    "OpenOrca": ({"system_prompt": SYSTEM[1], "question": "春は？", "response": "桜が咲きます。"}, [SYSTEM, *ONE]),
    "TRL, texts": ({"prompt": "春は？", "completion": "桜が咲きます。"}, ONE),
    "TRL, turns": ({"prompt": messages(SYSTEM, ONE[0]), "completion": messages(ONE[1])}, [SYSTEM, *ONE]),
}
DOCUMENTED = [
    (asked, answered)
    for asked in ("instruction", "prompt", "question")
    for answered in ("response", "output", "answer", "completion")
]


@pytest.mark.parametrize(("asked", "answered"), DOCUMENTED)
def test_every_documented_pair_of_columns(tmp_path: Path, asked: str, answered: str) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", [{asked: "春は？", answered: "桜が咲きます。", "system": SYSTEM[1]}])
    rows, counts = loaded(file)
    assert rows[0]["messages"] == messages(SYSTEM, *ONE) and counts.rows.num_bad == 0


PLACE = {"place": "港"}
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}
CALLED = {"type": "function", "function": {"name": "weather", "arguments": PLACE}}
FILLED = {"place": "港", "a": None, "deep": {"b": None, "c": [{"d": None, "e": 1}]}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (PLACE, PLACE),
        (json.dumps(PLACE, ensure_ascii=False), PLACE),
        (FILLED, {"place": "港", "deep": {"c": [{"e": 1}]}}),
        ('{"a": null}', {"a": None}),
        ("not JSON", "not JSON"),
    ],
)
@pytest.mark.parametrize("is_nested", [True, False])
def test_arguments_of_calls_are_objects_without_a_tables_nulls(
    tmp_path: Path, arguments: Any, expected: Any, is_nested: bool
) -> None:
    call: dict[str, Any] = {"name": "weather", "arguments": arguments}
    calls = [{"id": "c", "type": None, "function": call} if is_nested else call]
    turns = [{"role": "user", "content": "天気は？"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    turns += [{"role": "tool", "content": "晴"}, {"role": "assistant", "content": "晴れです。"}]
    tools = [{"type": "function", "function": TOOL | {"strict": None}}, TOOL]
    rows, counts = loaded(write_rows(tmp_path / "calls.jsonl", [{"messages": turns, "tools": tools}]))
    assert counts.rows.num_bad == 0
    (made,) = rows[0]["messages"][1]["tool_calls"]
    inner = {"name": "weather", "arguments": expected}
    assert made == ({"id": "c", "function": inner} if is_nested else inner)
    assert rows[0]["tools"] == [{"type": "function", "function": TOOL}] * 2


def test_sharegpt_with_tools(tmp_path: Path) -> None:
    call = json.dumps({"name": "weather", "arguments": PLACE})
    turns = [("human", "天気は？"), ("function_call", call), ("observation", "晴"), ("gpt", "晴れです。")]
    row = {
        "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
        "tools": json.dumps([TOOL]),
    }
    rows, counts = loaded(write_rows(tmp_path / "share.jsonl", [row]))
    assert counts.rows.num_bad == 0
    assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert rows[0]["messages"][1]["tool_calls"] == [CALLED]
    assert rows[0]["tools"] == [{"type": "function", "function": TOOL}]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_every_layout_gives_its_conversation(tmp_path: Path, name: str, kind: str) -> None:
    row, turns = LAYOUTS[name]
    rows = [row | {"id": f"r{number}"} for number in range(3)]
    file = tmp_path / f"train.{kind}"
    if kind == "parquet":
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        write_rows(file, rows)
    found, counts = loaded(file)
    assert found == [{"id": f"r{number}", "messages": messages(*turns)} for number in range(3)]
    assert (counts.rows.rows, counts.all_removed()) == (3, {})


def test_layouts_are_told_file_by_file(tmp_path: Path, tokenizer_folder: Path) -> None:
    files = [
        write_rows(tmp_path / f"f{place}.jsonl", [row]) for place, (row, _) in enumerate(list(LAYOUTS.values())[1:6])
    ]
    facts = conversations(CONFIG, workspace(tmp_path / "out"), *files, tokenizer_folder)
    kept = [row["messages"] for row in read_gzip(tmp_path / "out" / "documents" / "train-00000.jsonl.gz")]
    assert kept == [messages(SYSTEM, *TURNS), messages(*TURNS)]  # the others say the same as an earlier one
    assert facts["removed"]["exact duplicate"] == 3


def test_the_first_row_may_be_a_bad_one(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "mine.jsonl", [{"text": "a"}, *[LAYOUTS["ShareGPT"][0]] * 4])
    rows, counts = loaded(file)
    assert (len(rows), counts.rows.bad) == (4, {"no field conversations": 1})
    assert counts.rows.first_bad == ["mine.jsonl:1: no field conversations"]


def test_unknown_columns_are_shown(tmp_path: Path) -> None:
    columns = {f"column{number}": "x" for number in range(25)}
    with refuses("wrong-format", wanted="in mine.jsonl", got="column19 and 5 more"):
        loaded(write_rows(tmp_path / "mine.jsonl", [columns]))
    with refuses("wrong-format", wanted="in mine.txt", got="text"):
        (tmp_path / "mine.txt").write_text("春")
        loaded(tmp_path / "mine.txt")


def test_a_file_without_any_good_row_names_its_lines(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{broken\n[]\n")
    with refuses("wrong-format", got="2 of 2 (mine.jsonl:1: invalid JSON; mine.jsonl:2: not a JSON object)"):
        conversations(CONFIG, workspace(tmp_path / "out"), tmp_path / "mine.jsonl", tokenizer_folder)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": "春は？"}, "field messages is not a list"),
    ({"messages": []}, "empty messages"),
    ({"messages": ["春は？"]}, "a message without role"),
    ({"messages": messages(*TURNS[:1])}, "roles out of order"),
    ({"messages": messages(*TURNS[:1], ("gpt", "a"))}, "unknown role"),
    ({"messages": messages(("user", "a\x00b"), ("assistant", "c"))}, "a NUL character"),
    ({"messages": messages(("user", "a"), ("assistant", "c\ufffd\ufffd"))}, "broken text in a turn"),
    ({"messages": messages(("user", "a"), ("assistant", "\ud83d"))}, "invalid Unicode (a lone surrogate)"),
    ({"messages": messages(*ONE), "tools": "{"}, "tools that are no JSON"),
    ({"messages": messages(*ONE), "tools": '[{"a": "\\ud800"}]'}, "tools that are no JSON"),
    ({"messages": messages(*ONE), "tools": ["f"]}, "tools that are no list of objects"),
    (
        {"messages": [*messages(("user", "a")), {"role": "assistant", "tool_calls": "f()"}]},
        "tool calls that are no list of objects",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_rows_are_counted_with_file_and_line(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = [{"messages": messages(*ONE)}] * 5
    lines = [json.dumps(one) for one in [*good, row, *good]]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    rows, counts = loaded(tmp_path / "mine.jsonl")
    assert len(rows) == 10
    assert (counts.rows.bad, counts.rows.first_bad) == ({reason: 1}, [f"mine.jsonl:6: {reason}"])


def test_one_replacement_character_is_text(tmp_path: Path) -> None:
    row = {"messages": messages(("user", "U+FFFD は？"), ("assistant", "「\ufffd」です。"))}
    assert len(loaded(write_rows(tmp_path / "mine.jsonl", [row]))[0]) == 1


def test_tools_as_text_and_empty_fields_of_a_table(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    turns = [message | {"tool_calls": None, "name": None} for message in messages(*ONE)]
    rows = [
        {"id": "a", "messages": turns, "tools": json.dumps(tools)},
        {"id": "b", "messages": turns, "tools": []},
        {"id": None, "messages": turns, "tools": ""},
    ]
    found, _ = loaded(write_rows(tmp_path / "mine.jsonl", rows))
    assert found == [
        {"id": "a", "messages": messages(*ONE), "tools": tools},
        {"id": "b", "messages": messages(*ONE)},
        {"id": "mine-3", "messages": messages(*ONE)},
    ]


def test_what_the_template_refuses_is_bad_and_its_words_are_shown(tmp_path: Path, tokenizer_folder: Path) -> None:
    call = [*messages(("user", "a")), {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    good = [{"messages": messages(("user", f"{number}"), ("assistant", "a"))} for number in range(9)]
    file = write_rows(tmp_path / "mine.jsonl", [*good, {"messages": call}])
    facts = conversations(replace(CONFIG, max_bad_share=0.1), workspace(tmp_path / "out"), file, tokenizer_folder)
    assert facts["removed"]["refused by the chat template"] == 1 and facts["rows_out"] == 9
    with refuses("wrong-format", got="1 of 10 (mine.jsonl:10: refused") as found:
        conversations(CONFIG, workspace(tmp_path / "strict"), file, tokenizer_folder)
    assert "Undefined" in found[0].got


# --- anything at all --------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from("\0\ufffd\ud800<|im_end|>"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = ("role", "content", "from", "value", "tool_calls", "name")
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt"])
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLES | JSON,
        "from": ROLES | JSON,
        "content": TEXT | JSON,
        "value": TEXT | JSON,
        "tool_calls": JSON | st.lists(st.fixed_dictionaries({"function": JSON}), max_size=2),
    },
)
TURN_LIST = st.lists(MESSAGE | JSON, max_size=4)
COLUMNS = (
    *("messages", "conversation", "conversations", "instruction", "input", "output", "response", "prompt", "tools"),
    *("system", "synthesized_assistant_responses", "synthesized_multiturn_conversation", "translated_conversation"),
)
ROW = st.dictionaries(st.sampled_from(COLUMNS), TURN_LIST | TEXT | JSON, max_size=5)
LINE = ROW.map(json.dumps) | JSON.map(json.dumps) | st.text(string.printable, max_size=20)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=6), good=st.booleans(), overlong=st.sampled_from(["drop", "cut"]))
def test_malformed_rows_are_counted_or_refused(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, lines: list[str], good: bool, overlong: Any
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    kept = [json.dumps(LAYOUTS["messages"][0], ensure_ascii=False)] if good else []
    (folder / "mine.jsonl").write_bytes("\n".join([*kept, *lines, ""]).encode("utf-8", "surrogatepass"))
    config = replace(CONFIG, max_bad_share=1.0, sequence_tokens=96, overlong=overlong)
    try:
        facts = conversations(config, workspace(folder / "out"), folder / "mine.jsonl", tokenizer_folder)
    except UserError as error:
        assert error.wanted and error.got and error.next_step
        assert not good or error.code in ("damaged", "not-found")
        return
    assert facts["rows_in"] == facts["rows_out"] + sum(facts["removed"].values())
    documents = [row for split in SPLITS for row in read_gzip(folder / "out" / "documents" / f"{split}-00000.jsonl.gz")]
    assert len(documents) == facts["rows_out"] >= good


@pytest.mark.parametrize(("depth", "kept"), [(10, 1), (400, 0)])
def test_deep_nesting_is_counted(tmp_path: Path, tokenizer_folder: Path, depth: int, kept: int) -> None:
    deep: Any = "x"
    for _ in range(depth):
        deep = {"a": [deep]}
    rows = [{"messages": messages(*ONE)}, {"messages": messages(*TURNS), "tools": [{"function": deep}]}]
    config = replace(CONFIG, max_bad_share=1.0, sequence_tokens=2000)
    file = write_rows(tmp_path / "mine.jsonl", rows)
    facts = conversations(config, workspace(tmp_path / "out"), file, tokenizer_folder)
    assert facts["removed"].get("nested too deep", 0) == 1 - kept and facts["rows_out"] == 1 + kept
