"""Data sets and models of the Hugging Face hub by name: which files they are, and how these get to this machine.

    files = resolve(HubDataset(name="HuggingFaceFW/fineweb-2", config="jpn_Jpan"), sources=None)
    for file in files.files:
        with fetched(files, file, workspace.folder / "scratch") as path:
            ...

With SOURCES=DIR, `DIR/<org>/<name>/` replaces the hub, and `resolve` returns the paths of local files instead.

`names`: what a recipe or a command line calls a repository. `hub`: its `resolve` decides on the hub or the local folder
and on the commit (`recipes.resolve` calls it for each name of a recipe), and explains the hub's refusals. `select`:
which files of a repository are meant, and which of them are licence texts. `download`: fetches files when a stage reads
them, and finds truncated ones. `lockfile`: keeps a build at the commits and checksums that it began with. Benchmark
files have their own stage, `recipes.stages.benchmarks`.
"""

from common.sources.download import fetch, fetched
from common.sources.hub import Found, found_files, licence_files, resolve
from common.sources.lockfile import SourcesLock, kept_file, small_text
from common.sources.names import LOCK_FILE, HubDataset, HubFiles, HubModel, given_sources, local_mirror, parse_name

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
    "given_sources",
    "kept_file",
    "licence_files",
    "local_mirror",
    "parse_name",
    "resolve",
    "small_text",
]
