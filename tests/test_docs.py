"""Every command of docs/your-own-model.md, run in order on a few documents of real Japanese.

The commands run in a folder that looks like the checkout (its files are links) and holds `my/`. Blocks marked
`not run` are left out.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from docs_tiny import NOT_LINKED, ROOT, TALKS, TEXTS, blocks, commands, rows_of, run

from common.rows import read_rows
from common.store import read_manifest

PAGE = ROOT / "docs" / "your-own-model.md"
CONTEXT = "駅前の店では、りんごを一個百二十円で売っている。パンは一個二百円である。"
QUESTIONS = (
    ("multiple_choice", None, None, "桜が咲く季節はどれですか。", ["春", "夏", "秋", "冬", "梅雨"], ["春"]),
    ("multiple_choice", None, None, "雪の多い季節はどれですか。", ["春", "夏", "秋", "冬", "梅雨"], ["冬"]),
    ("short_answer", "phrasing", None, "日本で最も高い山の名前は何ですか。", None, ["富士山"]),
    ("short_answer", "entity", None, "京都は何年以上、日本の都でしたか。", None, ["千年"]),
    ("reading", None, CONTEXT, "りんごは一個いくらですか。", None, ["百二十円"]),
    ("reading", None, CONTEXT, "パンは一個いくらですか。", None, ["二百円"]),
    ("arithmetic", None, None, "りんごが3個あります。1個120円です。全部で何円ですか。", None, ["360"]),
    ("arithmetic", None, None, "1時間は60分です。2時間は何分ですか。", None, ["120"]),
    ("translation", "ja-en", None, "犬が走る。", None, ["The dog runs."]),
    ("translation", "en-ja", None, "The dog runs.", None, ["犬が走る。"]),
)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the checkout, with a user's files in `my/`."""
    for item in ROOT.iterdir():
        if item.name not in NOT_LINKED:
            (tmp_path / item.name).symlink_to(item)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    my = tmp_path / "my"
    my.mkdir()
    rows_of(my / "texts.jsonl", [{"text": text} for text in TEXTS])
    turns = [[("user", question), ("assistant", answer)] for question, answer in TALKS]
    turns += [[*turns[0], *turns[1]], [("system", "短く答えてください。"), *turns[6]]]
    rows_of(
        my / "talks.jsonl",
        [{"messages": [{"role": role, "content": content} for role, content in talk]} for talk in turns],
    )
    rows_of(
        my / "questions.jsonl",
        [
            {
                "id": f"{shape}-{place}",
                "shape": shape,
                "group": None if shape == "translation" else group,
                "direction": group if shape == "translation" else None,
                "context": context,
                "question": question,
                "choices": choices,
                "answers": answers,
            }
            for place, (shape, group, context, question, choices, answers) in enumerate(QUESTIONS)
        ],
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    return tmp_path


@pytest.mark.slow
def test_your_own_model_does_what_it_says(checkout: Path) -> None:
    for kind, block in blocks(PAGE.read_text(encoding="utf-8")):
        if kind == "bash":
            for command in commands(block):
                run(command, checkout)
    my = checkout / "my"
    card = json.loads((my / "corpus" / "data_card.json").read_text())
    assert card["rows_out"] == len(TEXTS) - 1
    assert card["removed"]["little Japanese"] == 1, "the text that is half English"
    assert read_manifest(my / "base")["facts"]["method"] == "taid"
    assert read_manifest(my / "chat")["facts"]["steps"] == 20
    assert {path.name for path in (my / "gguf").glob("*.gguf")} == {"chat-Q8_0.gguf", "chat-Q4_K_M.gguf"}
    assert (my / "fidelity.json").is_file() and (my / "phones.json").is_file() and (my / "tasks.json").is_file()
    dist = checkout / "dist" / "my-model"
    report = json.loads((dist / "report.json").read_text())
    assert report["recipe"] == "my-model" and (dist / "My-Model-Q4_K_M.gguf").is_file()
    assert all(row["value"] is None and row["reason"] for row in report["tasks"])
    stated = {source["licence"] for part in ("corpus", "conversations") for source in report["data"][part]["sources"]}
    assert stated == {"my own"} and "embedded" not in (dist / "LICENSES.md").read_text(encoding="utf-8")
    own = {*TEXTS, *(turn for talk in TALKS for turn in talk)} - {"こんにちは。"}  # the samples ask that themselves
    for folder in (dist, my / "gguf", my / "coreml"):
        for path in folder.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            for text in own:
                spelt = (text.encode(), json.dumps(text)[1:-1].encode(), text.encode("utf-16-le"))
                assert not any(each in content for each in spelt), f"{path} quotes {text}"
    kept = json.loads((my / "corpus" / "data_card.json").read_text())["samples"]["kept"]
    assert kept and all(sample["text"] in own for sample in kept), "samples to look at stay where they are made"


def test_every_block_of_commands_is_run_or_marked() -> None:
    kinds = {kind for kind, _ in blocks(PAGE.read_text(encoding="utf-8"))}
    assert kinds <= {"bash", "bash not run", "json"}


def test_the_json_of_the_page_is_what_the_readers_take(tmp_path: Path) -> None:
    examples = [block for kind, block in blocks(PAGE.read_text(encoding="utf-8")) if kind == "json"]
    texts, talks = tmp_path / "texts.jsonl", tmp_path / "talks.jsonl"
    texts.write_text(examples[0], encoding="utf-8")
    talks.write_text(examples[1], encoding="utf-8")
    assert len(list(read_rows(texts, fields=("text",)))) == 1
    assert len(list(read_rows(talks, fields=("messages",)))) == 1


def test_commands_are_split_as_bash_would() -> None:
    block = "one \\\n  two\ncat > file <<'END'\na\nb \\\nEND\nthree | four\n"
    assert list(commands(block)) == ["one \\\n  two", "cat > file <<'END'\na\nb \\\nEND", "three | four"]
