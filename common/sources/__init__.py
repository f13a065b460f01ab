"""Data sets and models of the Hugging Face hub by name: which files they are, and how they come to this machine.

    files = resolve(HubDataset(name="HuggingFaceFW/fineweb-2", config="jpn_Jpan"), sources=None)
    for file in files.files:
        with fetched(files, file, workspace.folder / "scratch") as path:
            ...

With SOURCES=DIR, `DIR/<org>/<name>/` stands in for the hub, and `resolve` gives the paths of local files instead. A
`SourcesLock` keeps what was resolved once, so that a build stays with it.

`names` says what a repository is called, `choosing` and `choosing_models` which of its files are meant, `hub` asks and
explains refusals, `find` puts these together, `locking` remembers, `fetching` downloads, `keeping` has a model's
small files ahead of the large ones. None of it reads a row or knows a stage.
"""

from common.sources.download import fetch, fetched
from common.sources.find import Found, found_files, resolve
from common.sources.lockfile import SourcesLock
from common.sources.names import LOCK_FILE, HubDataset, HubFiles, HubModel, local_mirror, parse_name, require_weights
from common.sources.prefetch_small import kept_file, small_text

__all__ = [
    "LOCK_FILE",
    "Found",
    "HubDataset",
    "HubFiles",
    "HubModel",
    "SourcesLock",
    "fetch",
    "fetched",
    "found_files",
    "kept_file",
    "local_mirror",
    "parse_name",
    "require_weights",
    "resolve",
    "small_text",
]
