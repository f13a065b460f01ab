"""The registry of public data sets that are known by name: terms, duties in two languages, files and sizes.

    terms_of("HuggingFaceFW/fineweb-2").licence  # "ODC-By-1.0"

`known_sets.toml` holds what the publishers state. Independent of stages and of the network.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, compress
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from common.provenance import Terms

_REGISTRY_FILE = Path(__file__).with_name("known_sets.toml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Obligation:
    """One duty of users who pass on the data or a model made of it: a summary by this product, in two languages."""

    english: str
    """As it travels in data cards and model folders."""
    japanese: str
    """As the Japanese part of a card shows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownSize:
    """The size of a set, or of one part, before the hub is asked. Either `bytes` or `file_bytes` is there."""

    bytes: int | None = None
    """Of all files."""
    file_bytes: int | None = None
    """Of one file, at most."""
    text_bytes: int | None = None
    """Of the text inside all files, UTF-8; None where it is not stated."""
    ending: str
    """Of the files' names, such as `.parquet`."""
    basis: str
    """Where the figures are from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownSet:
    """What is known of one data set. A field without a value was not stated where we read."""

    name: str
    """`org/name` on the hub."""
    layout: Literal["text", "conversations", "lmsys", "original"]
    """Who reads it: `distill.corpus`, `instruct.conversations`, the latter by its join of LMSYS files, or nobody by
    itself (`original`: a gated set from which another one derives)."""
    licence: str | None = None
    """SPDX identifier or the publisher's own name."""
    attribution: str | None = None
    """The line that the licence asks for."""
    obligations: tuple[Obligation, ...] = ()
    quotable: bool = False
    """Whether its terms allow a published report to quote rows; an open licence that the publisher states does."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Patterns inside the repository, by part; the part "" of a set without parts. Without patterns the set's own card
    lists the files."""
    default_part: str | None = None
    """The part that a name without one means."""
    local_files: tuple[tuple[str, ...], ...] = ()
    """Alternatives to `files` in a local folder, the best first: see `local_patterns`."""
    original: str | None = None
    """The known, gated set from which this one derives, and which each user needs as well."""
    sizes: Mapping[str, KnownSize] = field(default_factory=dict[str, KnownSize])
    """By part; "" for the whole set."""

    @property
    def parts(self) -> list[str]:
        """Names of the parts; none for a set without parts."""
        return [part for part in self.files if part]

    def local_patterns(self, folder: Path) -> tuple[str, ...]:
        """The first of `local_files` whose patterns all match a file in the folder; () where there is none."""
        fits = (all(any(path.is_file() for path in folder.glob(each)) for each in these) for these in self.local_files)
        return next(compress(self.local_files, fits), ())


def known_sets() -> list[KnownSet]:
    """All of them, in the registry's order."""
    return list(_registry().values())


def known_set(name: str) -> KnownSet | None:
    """The set `org/name` or `org/name:part`, also with a number in brackets after it; None where it is not known."""
    return _registry().get(re.split("[: ]", name, maxsplit=1)[0])


def known_size(name: str) -> KnownSize | None:
    """The size of the set `org/name`, or of its part `org/name:part`; None where it is not known."""
    known, part = known_set(name), name.partition(":")[2]
    return None if known is None else known.sizes.get(part)


def terms_of(name: str) -> Terms:
    """The terms of a hub's data set `org/name` or `org/name:part`; of an unknown set only name and URL."""
    terms, known = Terms(name=name, url=f"https://huggingface.co/datasets/{name.partition(':')[0]}"), known_set(name)
    if known is None:
        return terms
    duties = tuple(each.english for each in known.obligations)
    stated = {"licence": known.licence, "attribution": known.attribution, "quotable": known.quotable}
    return replace(terms, **stated, obligations=duties)


def require_own_terms(dataset: str | None, terms: Terms | None) -> None:
    """Compare terms that a user states with those of the known set that they are for.

    Args:
        dataset: `org/name` of the set on the hub; None for local files, which are a known set if `terms` say so.
        terms: what is stated; None states nothing.

    Raises:
        UserError ("contradiction"): another licence than the publisher's, or a set as quotable that is not.
    """
    known = None if terms is None else known_set(dataset or terms.name)
    if known is None or terms is None:
        return
    if terms.licence is not None and terms.licence != known.licence and known.licence is not None:
        wanted, got = f"the licence of {known.name}, {known.licence}", terms.licence
    elif terms.quotable and not known.quotable:
        wanted, got = f"quotable=False for {known.name}, whose terms are not known to allow quotes", "quotable=True"
    else:
        return
    next_step = f"correct the terms, or leave them out: common.known_sets.terms_of({known.name!r}) has them"
    raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)


def in_japanese(name: str, obligation: str) -> str:
    """An obligation of the source `name` in Japanese; in its own words where the registry does not state it.

    A source that the user named otherwise has the sentence of whichever set states it.
    """
    known = known_set(name)
    stated = chain(known.obligations if known is not None else (), *(each.obligations for each in known_sets()))
    return next((each.japanese for each in stated if each.english == obligation), obligation)


@cache
def _registry() -> dict[str, KnownSet]:
    entries = tomllib.loads(_REGISTRY_FILE.read_text(encoding="utf-8"))["set"]
    return {entry["name"]: _parsed(entry) for entry in entries}


def _parsed(entry: dict[str, Any]) -> KnownSet:
    """An entry with its lists as tuples and its tables as dataclasses; a field that no class has is a TypeError."""
    typed: dict[str, Any] = {
        "obligations": tuple(Obligation(**each) for each in entry.get("obligations", ())),
        "files": {part: tuple(patterns) for part, patterns in entry.get("files", {}).items()},
        "local_files": tuple(tuple(patterns) for patterns in entry.get("local_files", ())),
        "sizes": {part: KnownSize(**size) for part, size in entry.get("sizes", {}).items()},
    }
    return KnownSet(**entry | typed)
