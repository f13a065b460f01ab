"""Data sets and models of the Hugging Face hub by name: which files they are, and how these get to this machine.

    files = resolve(HubDataset(name="HuggingFaceFW/fineweb-2", config="jpn_Jpan"), sources=None)
    for file in files.files:
        with fetched(files, file, workspace.folder / "scratch") as path:
            ...

With SOURCES=DIR, `DIR/<org>/<name>/` replaces the hub, and `resolve` returns the paths of local files instead.

`names`: what a recipe or a command line calls a repository. `select`: which of its files are meant. `hub`: asks the hub
or the local folder, and explains the hub's refusals. `download`: fetches files and finds truncated ones. `lockfile`:
keeps a build at the commits and checksums that it began with.
"""

from common.sources.download import fetch, fetched
from common.sources.hub import Found, found_files, licence_files, resolve
from common.sources.lockfile import SourcesLock, kept_file, small_text
from common.sources.names import LOCK_FILE, HubDataset, HubFiles, HubModel, local_mirror, parse_name, require_weights

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
    "licence_files",
    "local_mirror",
    "parse_name",
    "require_weights",
    "resolve",
    "small_text",
]
