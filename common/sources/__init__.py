"""Data sets and models of the Hugging Face hub by name: which files they are, and how they come to this machine.

    files = resolve(HubDataset(name="HuggingFaceFW/fineweb-2", config="jpn_Jpan"), sources=None)
    for file in files.files:
        with fetched(files, file, workspace.folder / "scratch") as path:
            ...

With SOURCES=DIR, `DIR/<org>/<name>/` stands in for the hub, and `resolve` gives the paths of local files instead. A
`SourcesLock` keeps what was resolved once, so that a build stays with it.

`names` says what a repository is called, `choosing` which of its files are meant, `hub` asks and explains refusals,
`resolving` puts these together, `locking` remembers, `fetching` downloads. None of it reads a row or knows a stage.
"""

from common.sources.fetching import fetch, fetched
from common.sources.locking import LOCK_FILE, SourcesLock
from common.sources.names import HubDataset, HubFiles, HubModel, parse_name, require_weights, stand_in
from common.sources.resolving import Found, resolve

__all__ = [
    "LOCK_FILE",
    "Found",
    "HubDataset",
    "HubFiles",
    "HubModel",
    "SourcesLock",
    "fetch",
    "fetched",
    "parse_name",
    "require_weights",
    "resolve",
    "stand_in",
]
