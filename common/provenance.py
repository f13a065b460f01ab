"""Where a model's data came from and under which terms: a list that travels from data cards into every model folder.

A training stage calls `propagate_sources` once for each kind of data that it reads. `data_sources.json` in its folder
then names what the model learnt from, directly or through the checkpoints from which it was started or taught.
Exporters read it with `read_sources`. Independent of stages; it judges no licence.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

from common.errors import UserError, damaged

SOURCES_FILE = "data_sources.json"
TERMS_FILE = "terms.json"
CARD_FILE = "data_card.json"
MODEL = "model"
"""`DataSource.stage` of a published checkpoint."""
_TYPES = {"rows_out": int, "tokens_out": int, "quotable": bool}
"""Of the fields that are not text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The terms of use of a source."""

    name: str
    """What cards and reports call the source; never a path."""
    licence: str | None = None
    """SPDX identifier or the publisher's own name; None = not stated."""
    url: str | None = None
    """Where the source is published."""
    attribution: str | None = None
    """The line that the licence asks for."""
    obligations: tuple[str, ...] = ()
    """Duties of users who pass on the data or a model made of it, a sentence each, in English."""
    quotable: bool = False
    """Whether a report may quote rows of the source: a report is published with the model."""

    def __post_init__(self) -> None:
        if not self.name.strip() or self.name.startswith(("/", "~")):
            wanted, got = "a source's name, such as org/name or that of a file", self.name or "an empty one"
            next_step = "name the source; absolute paths do not belong in cards and reports"
            raise UserError("wrong-format", wanted=wanted, got=got, next_step=next_step)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource(Terms):
    """One source of the data that a model learnt from."""

    stage: str
    """The kind of data: `corpus`, `conversations`, or `model` for a published checkpoint."""
    revision: str | None = None
    """Commit or version of the source; None = not known."""
    rows_out: int | None = None
    """Its rows in the finished data, all splits together; None = not counted."""
    tokens_out: int | None = None
    """Its tokens in the finished data, all splits together; None = not counted."""

    @property
    def terms(self) -> Terms:
        """The terms alone."""
        return Terms(**{field.name: getattr(self, field.name) for field in fields(Terms)})


def write_terms(folder: Path, terms: Terms) -> None:
    """Write `terms.json` into a folder of data: the terms of all data files in it."""
    (folder / TERMS_FILE).write_text(json.dumps(asdict(terms), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_terms(folder: Path) -> Terms | None:
    """The terms in a folder of data; None where it has no `terms.json`, UserError where that holds no terms."""
    path = folder / TERMS_FILE
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        unknown = values.keys() - {field.name for field in fields(Terms)}
        if unknown:
            raise TypeError(f"unknown: {', '.join(sorted(unknown))}")
        return Terms(**_typed(values, Terms))
    except (ValueError, TypeError, AttributeError) as error:
        wanted, next_step = (
            f"name, licence, url, attribution, obligations and quotable in {path}",
            "correct the file or delete it",
        )
        raise UserError("wrong-format", wanted=wanted, got=str(error), next_step=next_step) from error


def terms_in(folder: Path, stated: Terms | None) -> Terms | None:
    """The terms of a folder of data: as `stated`, or as its `terms.json` says; None where neither is there.

    UserError ("contradiction") where both are there and differ.
    """
    own = read_terms(folder)
    if stated is None or own is None or stated == own:
        return stated or own
    both = asdict(stated), asdict(own)
    differing = ", ".join(name for name in both[0] if both[0][name] != both[1][name])
    wanted, got = f"terms as in {folder / TERMS_FILE}, or none", f"terms of {stated.name} with another {differing}"
    raise UserError("contradiction", wanted=wanted, got=got, next_step="correct one of the two, or leave one out")


def propagate_sources(target: Path, stage: str, data_folder: Path | None, *checkpoints: Path | None) -> None:
    """Write `data_sources.json` into a model folder: the sources of its checkpoints, then those of its data.

    Each source is there once a stage: a later entry of the same name and revision replaces an earlier one. A card
    that names its own `stage` overrides the argument, since one loop trains on text and on conversations. To add a
    second kind of data, call again with `target` as a checkpoint. Without any known source no file is written. A data
    card or a list of sources that cannot be read is a UserError.

    Args:
        target: the model folder, before its manifest is written.
        stage: the kind of data in `data_folder`.
        data_folder: a folder with a data card; None, or one without a card or without sources in it, adds nothing.
        checkpoints: model folders that the model started or learnt from.
    """
    carried = [read_sources(checkpoint) for checkpoint in checkpoints if checkpoint is not None]
    learnt = [] if data_folder is None else _read(data_folder / CARD_FILE, stage=stage)
    write_sources(target, merged(*carried, learnt))


def is_text(folder: Path) -> bool:
    """Whether a folder has a data card of text: a card of conversations names its stage. UserError if damaged."""
    path = folder / CARD_FILE
    return path.is_file() and _content(path).get("stage") is None


def read_sources(folder: Path) -> list[DataSource]:
    """The sources that a model folder names, in their order; none without `data_sources.json`, UserError if damaged."""
    return _read(folder / SOURCES_FILE)


def merged(*lists: Iterable[DataSource]) -> list[DataSource]:
    """Each source once: in the place of its first entry, with the content of its last one, quotable if all are."""
    found: dict[tuple[str, str, str | None], DataSource] = {}
    for source in chain(*lists):
        key = source.stage, source.name, source.revision
        is_quotable = source.quotable and (key not in found or found[key].quotable)
        found[key] = replace(source, quotable=is_quotable)
    return list(found.values())


def write_sources(folder: Path, sources: Sequence[DataSource]) -> None:
    """Write `data_sources.json` into a folder; no file where there are no sources."""
    if sources:
        text = json.dumps({"sources": [asdict(source) for source in sources]}, ensure_ascii=False, indent=2)
        (folder / SOURCES_FILE).write_text(text + "\n", encoding="utf-8")


def _read(path: Path, *, stage: str | None = None) -> list[DataSource]:
    """The entries under `sources` of a JSON file, none where there is no such file or no such field."""
    if not path.is_file():
        return []
    content = _content(path)
    own_stage = content.get("stage", stage)
    try:
        return [_parsed(entry, own_stage) for entry in content.get("sources", [])]
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _content(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content.get("stage")  # a list has none
    except (ValueError, AttributeError) as error:
        raise _unreadable(path, error) from error
    return content


def _unreadable(path: Path, error: Exception) -> UserError:
    got, next_step = f"{type(error).__name__}: {error}", "build or copy the folder again"
    return damaged(f"a list of sources in {path}", got, next_step=next_step)


def _parsed(entry: Mapping[str, Any], stage: Any) -> DataSource:
    """One entry; other fields of a data card are ignored. A field of another type is a TypeError."""
    return DataSource(**_typed({**entry, "stage": entry.get("stage") if stage is None else stage}, DataSource))


def _typed(entry: Mapping[str, Any], kind: type[Terms]) -> dict[str, Any]:
    """The fields of `kind` that an entry holds, null ones left out. A field of another type is a TypeError."""
    values = {field.name: entry[field.name] for field in fields(kind) if entry.get(field.name) is not None}
    obligations = values.pop("obligations", [])
    for name, value in values.items():
        wanted = _TYPES.get(name, str)
        if type(value) is not wanted:  # True is no number here
            raise TypeError(f"{value!r} as {name}")
    if not isinstance(obligations, list) or not all(isinstance(each, str) for each in cast(list[Any], obligations)):
        raise TypeError("obligations that are no list of sentences")
    return values | {"obligations": tuple(cast(list[str], obligations))}
