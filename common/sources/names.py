"""What a data set or a model of the hub is called, in a recipe and on a command line, and what it is once resolved.

It asks nobody whether a name exists.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import UserError
from common.rows import SUFFIXES

Kind = Literal["dataset", "model"]
LOCK_FILE = "sources.lock.json"
"""In a build folder: what its names were resolved to."""
NOUNS: dict[Kind, str] = {"dataset": "data set", "model": "model"}

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]*", re.ASCII)
_WORD = r"[^\s:@/]+"
_SPOKEN = re.compile(rf"(?P<name>[^\s:@]+)(?::(?P<config>{_WORD}))?(?:@(?P<revision>[^\s:@]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDataset:
    """A data set as a recipe names it."""

    name: str
    """`org/name`."""
    config: str | None = None
    """Which of its parts ("jpn_Jpan"); None for a data set of one part, or with a default."""
    revision: str | None = None
    """Branch, tag or commit; None is main."""
    split: str = "train"
    """Which of its splits."""
    files: tuple[str, ...] = ()
    """Patterns of paths inside the repository (`*` within a folder, `**` across folders), in the place of config and
    split. () = the files that the data set's card lists for config and split; where the card lists none, those whose
    path has the config and whose name has the split."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                wanted="the name of a data set on the hub, org/name", got=repr(self.name), next_step="correct the name"
            )
        for field in ("config", "revision", "split"):
            value = getattr(self, field)
            if value is not None and not re.fullmatch(r"\S(.*\S)?", value):
                raise UserError(
                    wanted=f"a {field} of the data set {self.name} without blanks around it",
                    got=repr(value),
                    next_step="correct it or leave it out",
                )
        for pattern in self.files:
            if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
                raise UserError(
                    wanted=f"patterns of paths inside the repository {self.name}, such as data/*.parquet",
                    got=repr(pattern),
                    next_step="correct `files`",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class HubModel:
    """A model as a recipe names it."""

    name: str
    """`org/name`."""
    revision: str | None = None
    """Branch, tag or commit; None is main."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                wanted="the name of a model on the hub, org/name", got=repr(self.name), next_step="correct the name"
            )
        if self.revision is not None and not re.fullmatch(r"\S+", self.revision):
            raise UserError(
                wanted=f"a revision of the model {self.name} without blanks",
                got=repr(self.revision),
                next_step="correct it or leave it out",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFiles:
    """What was resolved once. It enters a stage's config, so the same files at the same commit are the same key,
    whatever the branch does later."""

    kind: Kind = "dataset"
    name: str
    """`org/name`."""
    config: str | None = None
    """As the recipe named it; None for a model."""
    revision: str
    """The commit, 40 hex digits."""
    files: tuple[str, ...]
    """Paths inside the repository, sorted."""
    bytes: int
    """Of all files."""

    def __post_init__(self) -> None:
        if not _COMMIT.fullmatch(self.revision):
            raise UserError(
                wanted=f"a commit of {self.name}, 40 hex digits",
                got=repr(self.revision),
                next_step="let `resolve` find it from a branch or tag",
            )


def local_mirror(given: Path | None) -> Path | None:
    """The folder that stands in for the hub: the one that was given, else $SOURCES, else none."""
    return given or (Path(os.environ["SOURCES"]) if os.environ.get("SOURCES") else None)


def require_weights(names: Sequence[str], weights: Sequence[float] | None) -> None:
    """UserError where a command line gives weights, but not one for each file and set."""
    if weights is not None and len(weights) != len(names):
        raise UserError(
            wanted=f"{len(names)} weights, one for each FILE_OR_SET",
            got=str(len(weights)),
            next_step="Give --weights as many numbers as there are files and sets.",
        )


def parse_name(text: str) -> HubDataset | None:
    """The data set that a word of a command line names: `org/name`, `org/name:config`, `org/name:config@revision`.

    Returns:
        None for a path that exists, for what was meant as one and mistyped (it ends like a file of text, or begins with
        a folder that is there), and for anything that is no such name.
    """
    said = _SPOKEN.fullmatch(text)
    if said is None or not _NAME.fullmatch(said["name"]) or text.endswith((*SUFFIXES, ".json", ".csv", ".tsv", ".gz")):
        return None
    if Path(text).exists() or Path(text).parts[0] in (".", "..") or Path(Path(text).parts[0]).is_dir():
        return None
    return HubDataset(name=said["name"], config=said["config"], revision=said["revision"])
