"""Where a model's data came from, under which terms: a list that travels from the data cards into every model folder.

A training stage calls `propagate_sources` once for each kind of data that it reads. `data_sources.json` in its folder
then names what the model learnt from, directly or through the checkpoints that it was started or taught from;
exporters read it with `read_sources`. It judges no licence and knows no stage.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

from common.errors import UserError

SOURCES_FILE = "data_sources.json"
TERMS_FILE = "terms.json"
CARD_FILE = "data_card.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Under which terms a source may be used."""

    name: str
    """What the source is called in cards and reports; never a path."""
    licence: str | None = None
    """SPDX identifier or the publisher's own name; None = not stated."""
    url: str | None = None
    """Where the source is published."""
    attribution: str | None = None
    """The line that the licence asks for."""
    obligations: tuple[str, ...] = ()
    """What whoever passes on data or model must do, a sentence each."""

    def __post_init__(self) -> None:
        if not self.name.strip() or self.name.startswith(("/", "~")):
            raise UserError(
                wanted="a source's name, such as org/name or that of a file",
                got=self.name or "an empty one",
                next_step="Name the source; absolute paths do not belong into cards and reports.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource(Terms):
    """One source of the data that a model learnt from."""

    stage: str
    """The kind of data it was part of: `corpus` or `conversations`."""
    revision: str | None = None
    """Commit or version of the source; None = not known."""
    rows_out: int | None = None
    """Its rows in the finished data, all splits together; None = not counted."""
    tokens_out: int | None = None
    """Its tokens in the finished data, likewise."""


def write_terms(folder: Path, terms: Terms) -> None:
    """Write `terms.json` beside files of data: under which terms they stand, whoever reads them."""
    (folder / TERMS_FILE).write_text(json.dumps(asdict(terms), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_terms(folder: Path) -> Terms | None:
    """The terms that a folder of data says of itself; None where it says nothing.

    Raises:
        UserError: a file that holds no terms.
    """
    path = folder / TERMS_FILE
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values["obligations"] = tuple(values.get("obligations", ()))
        return Terms(**values)
    except (ValueError, TypeError) as error:
        raise UserError(
            wanted=f"name, licence, url, attribution and obligations in {path}",
            got=str(error),
            next_step="Correct the file, or delete it.",
        ) from error


def propagate_sources(target: Path, stage: str, data_folder: Path | None, *checkpoints: Path | None) -> None:
    """Write `data_sources.json` into a model folder: what its checkpoints carried already, then the data's sources.

    A source is named once a stage: the same name and revision again replaces what an earlier folder said of it. A card
    that names its own `stage` is believed, since text and conversations may be trained on by the same loop. To
    carry two kinds of data, call twice and give `target` itself as a checkpoint the second time. Where nothing is known
    of any source, no file is written.

    Args:
        target: the model folder, before its manifest is written.
        stage: the kind of data in `data_folder`.
        data_folder: a folder with a data card; None, or one without a card or without sources in it, adds nothing.
        checkpoints: model folders that the model started or learnt from.

    Raises:
        UserError: a data card or a list of sources that cannot be read.
    """
    carried = [read_sources(checkpoint) for checkpoint in checkpoints if checkpoint is not None]
    learnt = [] if data_folder is None else _read(data_folder / CARD_FILE, stage=stage)
    write_sources(target, merged(*carried, learnt))


def is_text(folder: Path) -> bool:
    """Whether a folder's data card is one of text: a card of conversations says so, and a folder without one nothing.

    Raises:
        UserError: a data card that cannot be read.
    """
    path = folder / CARD_FILE
    return path.is_file() and _content(path).get("stage") is None


def read_sources(folder: Path) -> list[DataSource]:
    """The sources that a model folder names, in their order there; none where it has no `data_sources.json`.

    Raises:
        UserError: the file is damaged.
    """
    return _read(folder / SOURCES_FILE)


def merged(*lists: Iterable[DataSource]) -> list[DataSource]:
    """Each source once: at the place where it is named first, as the last list describes it."""
    found: dict[tuple[str, str, str | None], DataSource] = {}
    for source in chain(*lists):
        found[source.stage, source.name, source.revision] = source
    return list(found.values())


def write_sources(folder: Path, sources: Sequence[DataSource]) -> None:
    """Write `data_sources.json` into a folder; no file where there are no sources."""
    if sources:
        content = {"sources": [asdict(source) for source in sources]}
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (folder / SOURCES_FILE).write_text(text, encoding="utf-8")


def _read(path: Path, *, stage: str | None = None) -> list[DataSource]:
    """The entries under `sources` of a JSON file, none where there is no such file or no such field."""
    if not path.is_file():
        return []
    content = _content(path)
    own_stage = content.get("stage", stage)
    try:
        return [_parsed(entry, own_stage) for entry in content.get("sources", [])]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _damaged(path, error) from error


def _content(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content.get("stage")  # a list has none
    except (ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    return content


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        wanted=f"a list of sources in {path}",
        got=f"{type(error).__name__}: {error}",
        next_step="Build or copy the folder again.",
    )


def _parsed(entry: Mapping[str, Any], stage: Any) -> DataSource:
    obligations = entry.get("obligations", [])
    if not isinstance(obligations, list):
        raise TypeError("obligations that are no list")
    return DataSource(
        name=_text(entry["name"]),
        licence=_optional_text(entry.get("licence")),
        url=_optional_text(entry.get("url")),
        attribution=_optional_text(entry.get("attribution")),
        obligations=tuple(_text(obligation) for obligation in cast(list[Any], obligations)),
        stage=_text(entry["stage"] if stage is None else stage),
        revision=_optional_text(entry.get("revision")),
        rows_out=_optional_count(entry.get("rows_out")),
        tokens_out=_optional_count(entry.get("tokens_out")),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text belongs")
    return value


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _optional_count(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} where a number of rows or tokens belongs")
