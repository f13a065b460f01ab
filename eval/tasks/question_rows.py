"""`questions.jsonl`: the rows that tasks ask, checked before a model is loaded or trained for them.

It knows the task files by their names, and loads no library that runs them.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.rows import Row, data_files, read_rows

TASK_FOLDERS = (Path(__file__).parent / "questions", Path(__file__).parent / "benchmarks")
"""lm-eval's YAML files over `questions.jsonl`, each named after its task: our own shapes, and published benchmarks."""
CHOICE_SHAPES = ("multiple_choice", "jcommonsenseqa", "jmmlu")
"""Whose questions are answered by the likeliest of their choices."""


def question_rows(folder: Path, *, shapes: Collection[str] | None = None) -> list[Row]:
    """The questions of a folder, in order; of a shape with choices, each with its answer among them.

    Args:
        folder: holds `questions.jsonl`.
        shapes: those that will be asked, and are checked; None checks all.

    Raises:
        UserError: no questions, too many rows that are none, or a question whose answer cannot be chosen.
    """
    rows = list(read_rows(data_files(folder, "questions"), fields={"shape": str, "question": str, "answers": list}))
    for row in rows:
        if row["shape"] not in CHOICE_SHAPES or (shapes is not None and row["shape"] not in shapes):
            continue
        choices: Any = row.get("choices")
        choices = choices if isinstance(choices, list) else []
        if row["answers"][0] not in choices:
            raise UserError(
                wanted=f"the answer among the choices of a question of shape {row['shape']}",
                got=f"{row['answers'][0]!r} beside {', '.join(map(repr, choices)) or 'none'} in question {row['id']}",
                next_step="correct that row of the questions.",
            )
    return rows


def task_files(shapes: set[str], tasks: Sequence[str] | None = None) -> dict[str, Path]:
    """Files of the tasks that were asked for, else of all whose shape the questions have.

    Raises:
        UserError: an unknown task, one without questions, or no question of a known shape.
    """
    paths = (path for folder in TASK_FOLDERS for path in sorted(folder.glob("*.yaml")))
    files = {path.stem: path for path in paths if not path.name.startswith("_")}
    for name in tasks or ():
        if name not in files:
            raise UserError(wanted=f"tasks out of {', '.join(files)}", got=name, next_step="name some of these.")
        if name not in shapes:
            raise UserError(
                wanted=f"questions of shape {name}",
                got=f"questions.jsonl with {', '.join(sorted(shapes))}",
                next_step="leave the task out or add such questions.",
            )
    found = {name: path for name, path in files.items() if (name in tasks if tasks else name in shapes)}
    if not found:
        raise UserError(
            wanted=f"questions of a shape out of {', '.join(files)}",
            got=f"questions.jsonl with {', '.join(sorted(shapes)) or 'no rows'}",
            next_step="add such questions.",
        )
    return found
