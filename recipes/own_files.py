"""A user's own text, conversations and questions in the place of the embedded world.

    world=OwnFilesConfig(text=(Path("texts.jsonl.gz"),), conversations=(Path("talks.jsonl"),))

The folder that it makes looks like a generated world: `text.jsonl`, `conversations.jsonl`, `questions.jsonl`, any of
them `.jsonl.gz`. Files are copied: a later edit of one's own file makes a new build and changes no finished one. It
does not look into the rows: the stages that read them count and name the bad ones.
"""

import gzip
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.metrics import progress
from common.provenance import Terms, write_terms
from common.store import Workspace, stage

_SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFilesConfig:
    """Which files; each counts by its content, so that it may be moved or renamed."""

    text: tuple[Path, ...]
    """`.jsonl` or `.jsonl.gz` files whose rows have a `text`; read in this order."""
    conversations: tuple[Path, ...] = ()
    """Likewise, rows with `messages`; the chat stage needs them."""
    questions: Path | None = None
    """Likewise, rows `{id, shape, group, context, question, choices, answers}`; the task scores need them."""

    terms: Terms | None = None
    """Name, licence and obligations of these files; they travel into every model that learns from them."""

    def __post_init__(self) -> None:
        if not self.text:
            raise UserError(
                wanted="at least one text file", got="none", next_step="name one in OwnFilesConfig(text=..)"
            )
        for path in (*self.text, *self.conversations, *([self.questions] if self.questions else [])):
            if not path.name.endswith(_SUFFIXES):
                raise UserError(
                    wanted="files named .jsonl or .jsonl.gz", got=str(path), next_step="write it as JSON lines"
                )
            if not path.is_file():
                raise UserError(
                    wanted=f"the file {path}", got="no such file", next_step="correct its path in the recipe"
                )


@stage(version=2)
def own_files(config: OwnFilesConfig, workspace: Workspace) -> dict[str, Any]:
    """Copies the files into the world's layout; several of a kind become one.

    Raises:
        UserError: one of several `.gz` files is truncated or damaged (a single one is copied as it is).
    """
    questions = () if config.questions is None else (config.questions,)
    sources = {"text": config.text, "conversations": config.conversations, "questions": questions}
    if config.terms is not None:
        write_terms(workspace.folder, config.terms)
    made = [_gather(paths, workspace.folder, stem) for stem, paths in sources.items() if paths]
    return {"bytes": {path.name: path.stat().st_size for path in made}}


def _gather(paths: tuple[Path, ...], folder: Path, stem: str) -> Path:
    if len(paths) == 1:
        target = folder / f"{stem}{'.jsonl.gz' if paths[0].suffix == '.gz' else '.jsonl'}"
        shutil.copyfile(paths[0], target)
        return target
    target = folder / f"{stem}.jsonl"
    with target.open("wb") as file:
        for path in progress(paths, label=f"copying {stem}", unit="files"):
            for line in _lines(path):
                file.write(line if line.endswith(b"\n") else line + b"\n")  # the last line of a file may lack its end
    return target


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            wanted=f"a whole gzip file {path}", got=str(error), next_step="copy or download the file again"
        ) from error
