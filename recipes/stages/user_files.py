"""The stage `user_files`: the user's own files of text, conversations and questions replace the generated world.

    world=UserFilesConfig(text=(Path("texts.jsonl.gz"),), conversations=(Path("talks.jsonl"),))

The artifact has the layout of a generated world: `text.jsonl`, `conversations.jsonl`, `questions.jsonl`, or with the
suffix of the file. Several files of a kind are numbered and not joined, since each may have its own layout. Files are
copied, so a later edit starts a new build and changes no finished one.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, not_found
from common.metrics import progress
from common.provenance import Terms, write_terms
from common.rows import SUFFIXES
from common.store import Workspace, say, stage
from eval.tasks.question_rows import question_rows, task_files

_LINES = (".jsonl", ".jsonl.gz")
_TABLES = tuple(suffix for suffix in SUFFIXES if suffix != ".txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class UserFilesConfig:
    """The files. Each counts by its content, so it may be moved or renamed."""

    text: tuple[Path, ...]
    """JSON lines (plain, `.gz` or `.zst`) or Parquet with a `text`, or `.txt` files; read in this order."""
    conversations: tuple[Path, ...] = ()
    """JSON lines or Parquet in a layout of conversations; the chat stage needs them."""
    questions: Path | None = None
    """`.jsonl` or `.jsonl.gz`, rows `{id, shape, group, context, question, choices, answers}`; for the task scores."""

    terms: Terms | None = None
    """Name, licence and obligations of these files. Every model that is trained on them keeps a copy."""

    def __post_init__(self) -> None:
        if not self.text:
            next_step = "name one in UserFilesConfig(text=..)"
            raise UserError("empty", wanted="at least one text file", got="none", next_step=next_step)
        questions = [self.questions] if self.questions else []
        for paths, suffixes in ((self.text, SUFFIXES), (self.conversations, _TABLES), (questions, _LINES)):
            for path in paths:
                if not path.name.endswith(suffixes):
                    wanted, next_step = f"a file named {', '.join(suffixes)}", "write it as JSON lines"
                    raise UserError("wrong-format", wanted=wanted, got=str(path), next_step=next_step)
                if not path.is_file():
                    raise not_found(f"the file {path}", next_step="correct its path in the recipe")


@stage(version=4)
def user_files(config: UserFilesConfig, workspace: Workspace) -> dict[str, Any]:
    """Copy the files into the layout of a world. Only questions are checked: they are read after hours of training.

    Raises:
        UserError: questions that no task can ask.
    """
    questions = [config.questions] if config.questions else []
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
        say(f"{target.name}: a copy of {path}")  # later stages name the copy
    if config.questions:
        task_files({str(row["shape"]) for row in question_rows(workspace.folder)})
    return {"bytes": {target.name: target.stat().st_size for _, target in copies}}


def _suffix(path: Path) -> str:
    return next(suffix for suffix in SUFFIXES if path.name.endswith(suffix))
