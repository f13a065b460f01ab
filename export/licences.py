"""Licences and duties as far as files state them: a model's licence as metadata and hubs name it, what users owe.

Functions of the sources that a model names; the exporters, the card and the upload use them. They copy what publishers
state and draw no conclusion of law.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from common.known_sets import in_japanese
from common.provenance import DataSource, Terms

OTHER = "other"
"""The name of terms that are no SPDX expression, in GGUF metadata as on model hubs."""
LICENCE_TEXTS = "licences"
"""Folder of a release with the publishers' own texts, `<org>--<name>/` each."""
LICENCE_PAGE = "LICENSE.md"
"""The page on the model's own licence where that is no single text."""
HUB_DATASETS = "https://huggingface.co/datasets/"
LLAMA = "Llama"

_LLAMA_NAME = re.compile(r"name that (?:begins|starts) with \W?Llama\b|\bLlama\W? at the beginning of", re.IGNORECASE)
# Llama 2's licence asks for no name; every one since does.
_LLAMA_LICENCE = re.compile(r"\bllama(?![\s_-]*2)", re.IGNORECASE)
_COPY = re.compile(r"\bpass on a copy of\b", re.IGNORECASE)
_GATHERED = "terms-of-its-sources"
# The hub's own spelling (huggingface.co/docs/hub/repositories-licenses); any other licence is `other` with a name.
_CC = ("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0")
_HUB_LICENCES = {name: name.lower() for name in ("Apache-2.0", "MIT", *_CC)} | {"ODC-By-1.0": "odc-by"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLicence:
    """The licence that a file of the model names."""

    identifier: str
    """An SPDX expression, or `other`."""
    name: str | None = None
    """The terms in words, for `other`."""
    is_gathered: bool = False
    """Whether `name` lists the terms of all sources, since nobody states a licence of the model."""

    @property
    def words(self) -> str:
        """The terms for a reader."""
        return self.name or self.identifier


@dataclass(frozen=True, kw_only=True, slots=True)
class Duty:
    """One obligation, with the names of all sources that state it."""

    english: str
    japanese: str
    """In the source's own words where no Japanese ones are known."""
    names: tuple[str, ...]


def spdx_expression(licence: str) -> str | None:
    """The SPDX expression in its canonical writing, None for terms that are none, such as a publisher's own."""
    try:
        return str(canonicalize_license_expression(licence))
    except InvalidLicenseExpression:
        return None


def spdx_url(licence: str | None) -> str | None:
    """Where the text of a licence is, known for a single SPDX identifier."""
    expression = None if licence is None else spdx_expression(licence)
    single = expression is not None and " " not in expression and not expression.startswith("LicenseRef-")
    return f"https://spdx.org/licenses/{expression}.html" if single else None


def licence_of(sources: Sequence[DataSource], stated: str | None = None) -> ModelLicence | None:
    """The licence of a model: the terms that the recipe states, or what its sources have in common.

    Where the sources differ, all of their licences are named. None where nothing is known.
    """
    names = [stated] if stated is not None else [source.licence for source in sources]
    known = list(dict.fromkeys(spdx_expression(name) or name for name in names if name is not None))
    if not known:
        return None
    if len(known) > 1 or None in names:
        gathered = ", ".join([*known, *(["not stated"] if None in names else [])])
        return ModelLicence(identifier=OTHER, name=gathered, is_gathered=True)
    is_spdx = spdx_expression(known[0]) is not None
    return ModelLicence(identifier=known[0]) if is_spdx else ModelLicence(identifier=OTHER, name=known[0])


def hub_licence(licence: ModelLicence | None) -> dict[str, str]:
    """The licence fields of a card's front matter; none where nothing is known.

    Terms that the hub has no identifier for are `other`, with a name and a link to the release's own `LICENSE.md`.
    """
    if licence is None:
        return {}
    if licence.identifier in _HUB_LICENCES:
        return {"license": _HUB_LICENCES[licence.identifier]}
    words = _GATHERED if licence.is_gathered else licence.words
    name = re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.") or "own-terms"
    return {"license": OTHER, "license_name": name, "license_link": LICENCE_PAGE}


def duties(sources: Iterable[Terms]) -> list[Duty]:
    """Every obligation that a source states, once."""
    stating: dict[str, dict[str, None]] = {}
    for source in sources:
        for obligation in source.obligations:
            stating.setdefault(obligation, {})[source.name] = None
    found: list[Duty] = []
    for english, names in stating.items():
        japanese = next((said for name in names if (said := in_japanese(name, english)) != english), english)
        found.append(Duty(english=english, japanese=japanese, names=tuple(names)))
    return found


def attributions(sources: Iterable[Terms]) -> list[str]:
    """The lines that licences ask to be shown, each once."""
    return list(dict.fromkeys(source.attribution for source in sources if source.attribution))


def unstated(sources: Iterable[Terms]) -> list[str]:
    """Names of the sources without a licence."""
    return list(dict.fromkeys(source.name for source in sources if source.licence is None))


def needs_llama_name(sources: Sequence[Terms]) -> bool:
    """Whether the model's name must begin with "Llama", by an obligation or by the name of a source's licence."""
    by_licence = any(_LLAMA_LICENCE.search(source.licence or "") for source in sources)
    return by_licence or any(_LLAMA_NAME.search(duty) for source in sources for duty in source.obligations)


def datasets(sources: Iterable[Terms]) -> list[str]:
    """Names of the sources that are data sets of the hub, `org/name` also of a part such as `org/name:ja`."""
    named = ((source.name.partition(":")[0], source.url or "") for source in sources)
    return list(dict.fromkeys(name for name, url in named if url.startswith(HUB_DATASETS + name)))


def without_text(folder: Path, sources: Iterable[Terms], base_models: Sequence[str]) -> list[str]:
    """Hub names of sources and of `base_models` whose publisher's text is not in the release `folder`.

    A source without an organisation, such as own files, owes no text; one whose licence is not stated counts, since its
    text would state it.
    """
    names = [*base_models, *(source.name.partition(":")[0] for source in sources if "/" in source.name)]
    texts = {name: (folder / text_folder(name)).rglob("*") for name in names}
    return [name for name, paths in texts.items() if not any(path.is_file() for path in paths)]


def owed_texts(folder: Path, sources: Iterable[Terms]) -> list[str]:
    """Hub names out of `without_text` whose terms ask users to pass on a copy of them with the model."""
    asking = [source for source in sources if any(_COPY.search(duty) for duty in source.obligations)]
    return without_text(folder, asking, [])


def text_folder(name: str) -> str:
    """The folder for the licence text of `org/name` in a release."""
    return f"{LICENCE_TEXTS}/{name.replace('/', '--')}"
