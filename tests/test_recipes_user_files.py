"""One's own files in the place of the embedded world, read back row by row."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from errors_tiny import refuses

from common.device import Machine
from common.errors import Code
from common.provenance import Terms
from common.rows import data_files, read_rows
from common.store import Workspace, artifact_key
from eval.tasks.question_rows import CHOICE_SHAPES, TASK_FOLDER
from instruct.conversations.counts import RuleCounts
from instruct.conversations.layouts import files_of, read_chat
from instruct.conversations.rules import LmsysConfig
from recipes.mini import mini
from recipes.stages.user_files import UserFilesConfig, user_files

MACHINE = Machine(
    device="cpu", compute_dtype="float32", cpu="any", gpu=None, memory_bytes=1, os="any", threads=1
)  # fmt: skip


def lines(name: str, count: int) -> bytes:
    return "\n".join(json.dumps({"text": f"{name} 文 {index}"}, ensure_ascii=False) for index in range(count)).encode()


def run(config: UserFilesConfig, folder: Path) -> list[str]:
    """Names of the files in the world folder."""
    folder.mkdir()
    facts = user_files(config, Workspace(folder=folder, machine=MACHINE))
    assert facts == {"bytes": {path.name: path.stat().st_size for path in folder.iterdir()}}
    return sorted(path.name for path in folder.iterdir())


def question(**fields: Any) -> dict[str, Any]:
    asked = {"id": "q-1", "shape": "multiple_choice", "question": "山は?", "choices": ["高い", "青い"]}
    return {**asked, "answers": ["高い"], **fields}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_single_files_are_copied_as_they_are(tmp_path: Path, suffix: str) -> None:
    paths = {name: tmp_path / f"my-{name}{suffix}" for name in ("text", "conversations", "questions")}
    for name, path in paths.items():
        content = json.dumps(question()).encode() if name == "questions" else lines(name, 3)
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    config = UserFilesConfig(
        text=(paths["text"],), conversations=(paths["conversations"],), questions=paths["questions"]
    )
    assert run(config, tmp_path / "world") == sorted(f"{name}{suffix}" for name in paths)
    for name, path in paths.items():
        copy = tmp_path / "world" / f"{name}{suffix}"
        assert copy.read_bytes() == path.read_bytes() and not copy.samefile(path)


def test_several_files_of_any_kind_stay_apart_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("a", 2))  # without a line end at its end
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines("b", 2) + b"\n"))  # a byte-order mark
    (tmp_path / "c.txt").write_text("春の町")
    Dataset.from_list([{"text": "川"}]).to_parquet(tmp_path / "d.parquet")
    named = ("b.jsonl.gz", "a.jsonl", "c.txt", "d.parquet")
    run(UserFilesConfig(text=tuple(tmp_path / name for name in named)), tmp_path / "world")
    files = data_files(tmp_path / "world", "text")
    assert [path.name for path in files] == [
        *("text-00001.jsonl.gz", "text-00002.jsonl", "text-00003.txt", "text-00004.parquet")
    ]
    texts = [row["text"] for row in read_rows(files, fields={"text": str}, max_bad_share=0.0)]
    assert texts == ["b 文 0", "b 文 1", "a 文 0", "a 文 1", "春の町", "川"]


def test_it_says_whose_copies_later_stages_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = tuple(tmp_path / name for name in ("b.jsonl", "a.jsonl"))
    for path in paths:
        path.write_bytes(lines("x", 1))
    run(UserFilesConfig(text=paths), tmp_path / "world")
    told = f"text-00001.jsonl: a copy of {paths[0]}\ntext-00002.jsonl: a copy of {paths[1]}\n"
    assert capsys.readouterr().out == told


def test_each_file_of_conversations_has_its_own_layout(tmp_path: Path) -> None:
    shapes = (
        {"conversations": [{"from": "human", "value": "山は?"}, {"from": "gpt", "value": "高い。"}]},
        {"messages": [{"role": "user", "content": "川は?"}, {"role": "assistant", "content": "長い。"}]},
        {"instruction": "海は?", "input": "", "output": "広い。"},
    )
    for number, row in enumerate(shapes):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(row))
    (tmp_path / "text.jsonl").write_bytes(lines("text", 1))
    talks = tuple(tmp_path / f"{number}.jsonl" for number in range(3))
    run(UserFilesConfig(text=(tmp_path / "text.jsonl",), conversations=talks), tmp_path / "world")
    counts = RuleCounts(terms=Terms(name="mine"))
    read = list(read_chat(files_of([tmp_path / "world"], tmp_path), counts, LmsysConfig()))
    assert [row["messages"][1]["content"] for row in read] == ["高い。", "長い。", "広い。"]
    assert counts.rows.num_bad == 0


@pytest.mark.parametrize(
    ("asked", "code", "wanted", "got"),
    [
        (question(answers=["A"]), "contradiction", "multiple_choice", ("'A' ", "'高い', '青い'", " q-1")),
        (question(choices=[]), "contradiction", "multiple_choice", ("'高い' ", " q-1")),
        (question(choices="高い山"), "contradiction", "multiple_choice", ("'高い' ", " q-1")),
        (question(choices=3), "contradiction", "multiple_choice", ("'高い' ", " q-1")),
        (question(shape="riddle"), "empty", "multiple_choice", ("riddle",)),
    ],
)
def test_questions_that_no_task_can_ask_are_refused_before_training(
    tmp_path: Path, asked: dict[str, Any], code: Code, wanted: str, got: tuple[str, ...]
) -> None:
    (tmp_path / "text.jsonl").write_bytes(lines("text", 1))
    (tmp_path / "questions.jsonl").write_text(json.dumps(asked))
    config = UserFilesConfig(text=(tmp_path / "text.jsonl",), questions=tmp_path / "questions.jsonl")
    with refuses(code, wanted=wanted) as caught:
        run(config, tmp_path / "world")
    assert all(part in caught[0].got for part in got)


def test_the_shapes_with_choices_are_those_of_the_task_files() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in TASK_FOLDER.glob("*.yaml")}
    included = {
        name: re.findall(r"^include: (?:\S*/)?(\w+)\.yaml$", text, re.MULTILINE) for name, text in texts.items()
    }
    whole = {name: "".join([text, *(texts[other] for other in included[name])]) for name, text in texts.items()}
    likeliest = {name for name, text in whole.items() if "output_type: multiple_choice" in text}
    assert {name for name in likeliest if not name.startswith("_")} == set(CHOICE_SHAPES)


def test_a_recipe_with_a_chat_stage_names_conversations(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_bytes(lines("text", 1))
    with refuses("contradiction", wanted="conversations in the world", got="none"):
        replace(mini(), world=UserFilesConfig(text=(tmp_path / "text.jsonl",)))


def test_files_count_by_content(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": "x", "b.jsonl": "x", "c.jsonl": "y"}.items():
        (tmp_path / name).write_text(content)
    keys = [
        artifact_key("world", "m:f", 1, UserFilesConfig(text=(tmp_path / name,)), ())
        for name in ("a.jsonl", "b.jsonl", "c.jsonl")
    ]
    assert keys[0] == keys[1] != keys[2]


def test_bad_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with refuses("empty", wanted="text file", got="none"):
        UserFilesConfig(text=())
    with refuses("wrong-format", wanted="named .jsonl, .jsonl.gz", got="a.txt") as caught:
        UserFilesConfig(text=(tmp_path / "a.txt",), questions=tmp_path / "a.txt")
    assert caught[0].wanted.endswith(".gz")
    with refuses("wrong-format", wanted=".parquet, .txt", got="a.csv"):
        UserFilesConfig(text=(tmp_path / "a.csv",))
    with refuses("wrong-format", wanted=".parquet", got="a.txt") as caught:
        UserFilesConfig(text=(tmp_path / "a.txt",), conversations=(tmp_path / "a.txt",))
    assert caught[0].wanted.endswith(".parquet")
    with refuses("not-found", wanted="absent.jsonl"):
        UserFilesConfig(text=(tmp_path / "absent.jsonl",))
