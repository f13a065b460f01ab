"""`questions.jsonl`, the one form in which tasks are asked: rows read and checked, or made from benchmarks' test items.

The task files `questions/*.yaml` ask published benchmarks zero-shot: the likelihood of a choice's text, the exact match
of a short answer. These are forms of our own, and each file says so; scores in them do not compare with published ones.
Benchmarks that need a sandbox (JHumanEval) or a judge (JMT-Bench) are left out. Loads no library that runs a task.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, unknown_name
from common.rows import Row, data_files, read_rows
from eval.tasks.items import Item

TASK_FOLDER = Path(__file__).parent / "questions"
"""lm-eval's YAML files over `questions.jsonl`, each named after its task: our own shapes, and published benchmarks."""
CHOICE_SHAPES = ("multiple_choice", "jcommonsenseqa", "jmmlu")
"""Shapes of questions that are answered by the likeliest of their choices."""
_TEST_FILES = {
    "jcommonsenseqa": ("valid",),
    "jmmlu": ("",),
    "jsquad": ("valid",),
    "jemhopqa": ("dev_ver1.2", "dev"),
    "niilc": ("test",),
    "mgsm_ja": ("mgsm_ja",),
}
"""Parts of the names of test files by benchmark; the first that matches a file counts. JGLUE's test half is not
published, and its authors use the validation files; NIILC's dev file is what published settings show as examples."""
_NO_ANSWER = "-"
"""NIILC's answer of an item that was withdrawn."""


def question_rows(folder: Path, *, shapes: Collection[str] | None = None) -> list[Row]:
    """The questions of `questions.jsonl` in a folder; in a shape with choices, the answer is one of them.

    Only rows of the `shapes` that will be asked are checked; None checks all. Raises UserError without questions, for
    too many invalid rows, or for a question whose answer cannot be chosen.
    """
    rows = list(read_rows(data_files(folder, "questions"), fields={"shape": str, "question": str, "answers": list}))
    for row in rows:
        if row["shape"] not in CHOICE_SHAPES or (shapes is not None and row["shape"] not in shapes):
            continue
        choices: Any = row.get("choices")
        choices = choices if isinstance(choices, list) else []
        if row["answers"][0] not in choices:
            wanted = f"the answer among the choices of a question of shape {row['shape']}"
            got = f"{row['answers'][0]!r} with {', '.join(map(repr, choices)) or 'no choices'} in {row['id']}"
            raise UserError("contradiction", wanted=wanted, got=got, next_step="correct that row of the questions")
    return rows


def task_files(shapes: set[str], tasks: Sequence[str] | None = None) -> dict[str, Path]:
    """Files of the named tasks by name; without names, of all tasks whose shape the questions have.

    Raises UserError for an unknown task, for one without questions, or if no question has a known shape.
    """
    files = {path.stem: path for path in sorted(TASK_FOLDER.glob("[!_]*.yaml"))}
    got = f"questions.jsonl with {', '.join(sorted(shapes)) or 'no rows'}"
    for name in tasks or ():
        if name not in files:
            raise unknown_name("a task", name, files)
        if name not in shapes:
            next_step = "leave the task out or add such questions"
            raise UserError("empty", wanted=f"questions of shape {name}", got=got, next_step=next_step)
    found = {name: path for name, path in files.items() if name in (tasks or shapes)}
    if not found:
        wanted = f"questions of a shape out of {', '.join(files)}"
        raise UserError("empty", wanted=wanted, got=got, next_step="add such questions")
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The items of one benchmark."""

    benchmark: str
    items: tuple[Item, ...]
    available: int
    """Test items that can be asked, chosen or not."""


def choose_items(items: Mapping[str, Iterable[Item]], *, limit: int | None) -> tuple[list[Chosen], dict[str, str]]:
    """The test items of each benchmark that is there and can be scored, and why each other one is left out.

    Of each benchmark at most `limit` items are taken; a smaller limit takes a part of what a larger one takes.
    """
    chosen: list[Chosen] = []
    left_out: dict[str, str] = {}
    for name, marks in _TEST_FILES.items():
        there = list(items.get(name, ()))
        usable = _usable(there, marks)
        if usable:
            by_digest = sorted(usable, key=lambda item: hashlib.sha256(item.id.encode()).digest())
            chosen.append(Chosen(benchmark=name, items=tuple(by_digest[:limit]), available=len(usable)))
        elif there:
            files = ", ".join(sorted({_file(item) for item in there}))
            of_test = any(mark in _file(item) for item in there for mark in marks)
            wanted = "items with an answer" if of_test else f"a file with {' or '.join(marks)} in its name"
            left_out[name] = f"wanted {wanted}, got {files}"
    return chosen, left_out


def benchmark_rows(chosen: Iterable[Chosen]) -> Iterator[dict[str, Any]]:
    """Rows `id, shape, group, context, question, choices, answers`; the shape is the benchmark's name."""
    for name, item in ((each.benchmark, item) for each in chosen for item in each.items):
        yield {
            "id": f"{name}/{item.id}",
            "shape": name,
            "group": None,
            "context": item.context,
            "question": item.question,
            "choices": [choice.strip() for choice in item.choices],
            "answers": [answer.strip() for answer in item.answers if answer != _NO_ANSWER],
        }


def _usable(items: list[Item], marks: tuple[str, ...]) -> list[Item]:
    for mark in marks:
        found = [item for item in items if mark in _file(item)]
        if found:
            return [item for item in found if set(item.answers) - {_NO_ANSWER}]
    return []


def _file(item: Item) -> str:
    """The name of its file, without the suffix."""
    return item.id.rpartition(":")[0].rpartition("/")[2]
