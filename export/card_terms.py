"""What may be done with a model, as far as files can tell: its licence as hubs write it, names and texts that are owed.

Pure functions of the sources that a model names, used by the card and by `export.upload`. It copies what publishers
state and draws no conclusion of law.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from common.provenance import DataSource
from export.licences import OTHER, Licence

LICENCE_TEXTS = "licences"
"""Folder of a release with the publishers' own texts, `<org>--<name>/` each."""
LICENCE_PAGE = "LICENSE.md"
"""The page on the model's own licence, where that is no single text."""
HUB_DATASETS = "https://huggingface.co/datasets/"
LLAMA = "Llama"

_LLAMA_NAME = re.compile(r"name that (?:begins|starts) with \W?Llama\b|\bLlama\W? at the beginning of", re.IGNORECASE)
# Llama 2's licence asks for no name; every one since does.
_LLAMA_LICENCE = re.compile(r"\bllama(?![\s_-]*2)", re.IGNORECASE)
_COPY = re.compile(r"\bpass on a copy of\b", re.IGNORECASE)
_GATHERED = "terms-of-its-sources"
# The hub's own spelling (huggingface.co/docs/hub/repositories-licenses); what is not listed goes as `other` by name.
_HUB_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC0-1.0": "cc0-1.0",
    "CC-BY-3.0": "cc-by-3.0",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-SA-3.0": "cc-by-sa-3.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0",
    "ODC-By-1.0": "odc-by",
}


def hub_licence(licence: Licence | None) -> dict[str, str]:
    """The licence fields of a card's front matter; none where nothing is known.

    Terms that the hub has no identifier for are `other`, with a name and a link to the release's own `LICENSE.md`.
    """
    if licence is None:
        return {}
    if licence.identifier in _HUB_LICENCES:
        return {"license": _HUB_LICENCES[licence.identifier]}
    words = _GATHERED if licence.is_gathered else licence.name or licence.identifier
    name = re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.") or "own-terms"
    return {"license": OTHER, "license_name": name, "license_link": LICENCE_PAGE}


def obligations(sources: Sequence[DataSource]) -> dict[str, list[str]]:
    """Every duty that a source states, once, with the names of the sources that state it."""
    found: dict[str, list[str]] = {}
    for source in sources:
        for duty in source.obligations:
            names = found.setdefault(duty, [])
            if source.name not in names:
                names.append(source.name)
    return found


def attributions(sources: Sequence[DataSource]) -> list[str]:
    """The lines that licences ask to be shown, each once."""
    return list(dict.fromkeys(source.attribution for source in sources if source.attribution))


def unstated(sources: Sequence[DataSource]) -> list[str]:
    """Names of the sources without a licence."""
    return list(dict.fromkeys(source.name for source in sources if source.licence is None))


def needs_llama_name(sources: Sequence[DataSource]) -> bool:
    """Whether whoever passes the model on must call it "Llama...": a source says so, or stands under such a licence."""
    by_name = any(_LLAMA_LICENCE.search(source.licence or "") for source in sources)
    return by_name or any(_LLAMA_NAME.search(duty) for duty in obligations(sources))


def repository(name: str) -> str:
    """`org/name` of a source that is a part of a repository, such as `org/name:ja`."""
    return name.partition(":")[0]


def datasets(sources: Sequence[DataSource]) -> list[str]:
    """Names of the sources that are data sets of the hub."""
    names = ((repository(source.name), source.url or "") for source in sources)
    named = (name for name, url in names if url.startswith(HUB_DATASETS + name))
    return list(dict.fromkeys(named))


def without_text(folder: Path, sources: Sequence[DataSource], base_models: Sequence[str]) -> list[str]:
    """Hub names of sources and base models whose publisher's text does not lie in the release.

    Args:
        folder: the release.
        sources: what the model learnt from; one that names no organisation, such as own files, owes no text. One whose
            licence is not stated counts: its text would say.
        base_models: `org/name` each.
    """
    names = [*base_models, *(repository(source.name) for source in sources if "/" in source.name)]
    return [name for name in dict.fromkeys(names) if not _holds_a_file(folder / text_folder(name))]


def owed_texts(folder: Path, sources: Sequence[DataSource]) -> list[str]:
    """Hub names out of `without_text` whose terms ask whoever passes the model on to add a copy of them."""
    asking = [source for source in sources if any(_COPY.search(duty) for duty in source.obligations)]
    return without_text(folder, asking, [])


def text_folder(name: str) -> str:
    """Where in a release the licence text of `org/name` belongs."""
    return f"{LICENCE_TEXTS}/{name.replace('/', '--')}"


def _holds_a_file(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))
