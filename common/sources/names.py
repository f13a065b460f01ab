"""Names of data sets and models of the hub, in recipes and on command lines, and the files that they resolve to."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from common.errors import UserError
from common.rows import SUFFIXES

Source = TypeVar("Source")
Kind = Literal["dataset", "model"]
LOCK_FILE = "sources.lock.json"
"""In a build folder: what its names were resolved to."""
NOUNS: dict[Kind, str] = {"dataset": "data set", "model": "model"}

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]*", re.ASCII)
_WORD = r"[^\s:@/]+"
_ARGUMENT = re.compile(rf"(?P<name>[^\s:@]+)(?::(?P<config>{_WORD}))?(?:@(?P<revision>[^\s:@]+))?")
_RELATIVE = re.compile(r"(?!/|(.*/)?\.\.(/|$)).+")  # a path that does not begin with / and has no part ..


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDataset:
    """A data set as a recipe names it."""

    kind: ClassVar[Kind] = "dataset"
    name: str
    """`org/name`."""
    config: str | None = None
    """Which of its parts ("jpn_Jpan"); None for a data set of one part, or with a default."""
    revision: str | None = None
    """Branch, tag or commit; None is main."""
    split: str = "train"
    """Which of its splits."""
    files: tuple[str, ...] = ()
    """Patterns of paths inside the repository (`*` within a folder, `**` across folders), which replace config and
    split. () = the files that the data set's card lists for config and split; if the card lists none, those whose path
    has the config and whose name has the split."""

    @property
    def full_name(self) -> str:
        """`org/name`, or `org/name:config`: two parts of a set are two sources."""
        return self.name if self.config is None else f"{self.name}:{self.config}"

    def __post_init__(self) -> None:
        _require(_NAME, self.name, "the name of a data set on the hub, org/name")
        for field in ("config", "revision", "split"):
            _require(r"\S(.*\S)?", getattr(self, field), f"a {field} of the data set {self.name} without outer blanks")
        for pattern in self.files:
            _require(_RELATIVE, pattern, f"patterns of paths inside {self.name}, such as data/*.parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubModel:
    """A model as a recipe names it."""

    kind: ClassVar[Kind] = "model"
    name: str
    """`org/name`."""
    revision: str | None = None
    """Branch, tag or commit; None is main."""

    def __post_init__(self) -> None:
        _require(_NAME, self.name, "the name of a model on the hub, org/name")
        _require(r"\S+", self.revision, f"a revision of the model {self.name} without blanks")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFiles:
    """What a name was resolved to. It enters a stage's config: the same files at the same commit give the same key,
    whatever happens to the branch later."""

    kind: Kind = "dataset"
    name: str
    """`org/name`."""
    config: str | None = None
    """As the recipe names it; None for a model."""
    revision: str
    """The commit, 40 hex digits."""
    files: tuple[str, ...]
    """Paths inside the repository, sorted."""
    bytes: int
    """Of all files."""

    def __post_init__(self) -> None:
        _require(r"[0-9a-f]{40}", self.revision, f"a commit of {self.name}, 40 hex digits")


def _require(pattern: str | re.Pattern[str], value: str | None, wanted: str) -> None:
    if value is not None and not re.fullmatch(pattern, value):
        raise UserError("wrong-format", wanted=wanted, got=repr(value), next_step="correct it")


def local_mirror(given: Path | None) -> Path | None:
    """The folder that replaces the hub: `given`, else $SOURCES, else None."""
    return given or (Path(os.environ["SOURCES"]) if os.environ.get("SOURCES") else None)


def _require_weights(names: Sequence[str], weights: Sequence[float] | None) -> None:
    """UserError if a command line gives weights, but not one for each file and set."""
    if weights is not None and len(weights) != len(names):
        wanted = f"{len(names)} weights, one for each FILE_OR_SET"
        raise UserError("mismatch", wanted=wanted, got=str(len(weights)), next_step="correct --weights")


def parse_name(text: str) -> HubDataset | None:
    """The data set that an argument names: `org/name`, `org/name:config`, `org/name:config@revision`.

    None for a path that exists, for a mistyped path (it ends like a text file, or begins with an existing folder), and
    for anything that is not such a name.
    """
    parts = _ARGUMENT.fullmatch(text)
    if parts is None or not _NAME.fullmatch(parts["name"]):
        return None
    if text.endswith((*SUFFIXES, ".json", ".csv", ".tsv", ".gz")) or Path(text).exists():
        return None
    if Path(text).parts[0] in (".", "..") or Path(Path(text).parts[0]).is_dir():
        return None
    return HubDataset(name=parts["name"], config=parts["config"], revision=parts["revision"])


def given_sources(
    parsed: argparse.Namespace,
    of_set: Callable[[HubDataset, float | None], Source],
    of_file: Callable[[Path, float | None, list[Source]], Source],
    *,
    plain: bool = True,
) -> tuple[tuple[Source, ...], list[Path]]:
    """The sources of a config, and the inputs of its stage: files without a set or a weight next to them.

    `of_set` and `of_file` make a source with its weight, the latter from the sources before it too; without `plain`
    files always become sources.
    """
    sets = [parse_name(name) for name in parsed.files]
    if not any(sets) and parsed.weights is None and plain:
        return (), [Path(name) for name in parsed.files]
    _require_weights(parsed.files, parsed.weights)
    found: list[Source] = []
    for name, dataset, weight in zip(parsed.files, sets, parsed.weights or [None] * len(sets), strict=True):
        found.append(of_set(dataset, weight) if dataset else of_file(Path(name), weight, found))
    return tuple(found), []
