"""A user's own text, conversations and questions in the place of the embedded world.

    world=UserFilesConfig(text=(Path("texts.jsonl.gz"),), conversations=(Path("talks.jsonl"),))

The folder that it makes looks like a generated world: `text.jsonl`, `conversations.jsonl`, `questions.jsonl`, or of the
kind that the file is; several files of a kind stay apart, as each may have a layout of its own, and are numbered. Files
are copied: a later edit of one's own file makes a new build and changes no finished one. It looks into the questions,
which are asked after hours of training; other rows are counted and named by the stages that read them.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.metrics import progress
from common.provenance import Terms, write_terms
from common.rows import SUFFIXES
from common.store import Workspace, say, stage
from eval.tasks.question_rows import question_rows, task_files

_LINES = (".jsonl", ".jsonl.gz")
_TABLES = tuple(suffix for suffix in SUFFIXES if suffix != ".txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class UserFilesConfig:
    """Which files; each counts by its content, so that it may be moved or renamed."""

    text: tuple[Path, ...]
    """JSON lines (plain, `.gz` or `.zst`) or Parquet with a `text`, or `.txt` files; read in this order."""
    conversations: tuple[Path, ...] = ()
    """JSON lines or Parquet in a layout of conversations; the chat stage needs them."""
    questions: Path | None = None
    """`.jsonl` or `.jsonl.gz`, rows `{id, shape, group, context, question, choices, answers}`; for the task scores."""

    terms: Terms | None = None
    """Name, licence and obligations of these files; they travel into every model that learns from them."""

    def __post_init__(self) -> None:
        if not self.text:
            raise UserError(
                wanted="at least one text file", got="none", next_step="name one in UserFilesConfig(text=..)"
            )
        questions = [self.questions] if self.questions else []
        for paths, suffixes in ((self.text, SUFFIXES), (self.conversations, _TABLES), (questions, _LINES)):
            for path in paths:
                if not path.name.endswith(suffixes):
                    raise UserError(
                        wanted=f"a file named {', '.join(suffixes)}", got=str(path), next_step="write it as JSON lines"
                    )
                if not path.is_file():
                    raise UserError(
                        wanted=f"the file {path}", got="no such file", next_step="correct its path in the recipe"
                    )


@stage(version=3)
def user_files(config: UserFilesConfig, workspace: Workspace) -> dict[str, Any]:
    """Copies the files into the world's layout.

    Raises:
        UserError: questions that no task can ask.
    """
    questions = () if config.questions is None else (config.questions,)
    sources = {"text": config.text, "conversations": config.conversations, "questions": questions}
    if config.terms is not None:
        write_terms(workspace.folder, config.terms)
    copies = [
        (path, workspace.folder / f"{stem}{f'-{number:05}' if len(paths) > 1 else ''}{_suffix(path)}")
        for stem, paths in sources.items()
        for number, path in enumerate(paths, start=1)
    ]
    for path, target in progress(copies, label="copying", unit="files"):
        shutil.copyfile(path, target)
        say(f"{target.name}: a copy of {path}")  # which is what later stages name
    if questions:
        task_files({str(row["shape"]) for row in question_rows(workspace.folder)})
    return {"bytes": {target.name: target.stat().st_size for _, target in copies}}


def _suffix(path: Path) -> str:
    return next(suffix for suffix in SUFFIXES if path.name.endswith(suffix))
