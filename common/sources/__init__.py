"""Data sets of the Hugging Face hub by name: which files they are, and one file at a time on this machine.

    files = resolve(HubDataset(name="HuggingFaceFW/fineweb-2", config="jpn_Jpan"), sources=None)
    for file in files.files:
        with fetched(files, file, workspace.folder / "scratch") as path:
            ...

With SOURCES=DIR, `DIR/<org>/<name>/` stands in for the hub, and `resolve` gives the paths of local files instead.

`names` says what a data set is called, `choosing` which of its files are meant, `hub` asks and explains refusals,
`resolving` puts these together, `fetching` downloads. None of it reads a row, and none knows a stage.
"""

from common.sources.fetching import fetched
from common.sources.names import HubDataset, HubFiles, parse_name, require_weights, stand_in
from common.sources.resolving import resolve

__all__ = ["HubDataset", "HubFiles", "fetched", "parse_name", "require_weights", "resolve", "stand_in"]
