"""What may be done with a model, as far as files can tell: its licence as hubs write it, names and texts that are owed.

Pure functions of the sources that a model names, used by the card and by `export.publish`. It copies what publishers
state and draws no conclusion of law.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from common.provenance import DataSource
from export.licences import OTHER, Licence

LICENCE_TEXTS = "licences"
"""Folder of a release with the publishers' own texts, `<org>--<name>/` each."""
HUB_DATASETS = "https://huggingface.co/datasets/"
LLAMA = "Llama"

_LLAMA_NAME = re.compile(r"name that (?:begins|starts) with \W?Llama\b|\bLlama\W? at the beginning of", re.IGNORECASE)
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
    words = licence.name or licence.identifier
    name = re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.") or "own-terms"
    return {"license": OTHER, "license_name": name, "license_link": "LICENSE.md"}


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
    """Whether a source obliges whoever passes the model on to call it "Llama...", as the Llama licences do."""
    return any(_LLAMA_NAME.search(duty) for duty in obligations(sources))


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
        sources: what the model learnt from; one that names no organisation, such as own files, owes no text.
        base_models: `org/name` each.
    """
    stated = (repository(source.name) for source in sources if source.licence is not None)
    names = [*base_models, *(name for name in stated if "/" in name)]
    texts = folder / LICENCE_TEXTS
    return [name for name in dict.fromkeys(names) if not _holds_a_file(texts / name.replace("/", "--"))]


def _holds_a_file(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))
