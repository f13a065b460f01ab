"""The stage `dist`: what a user takes away, in one folder: GGUF files, Core ML package, report, data card, SHA256SUMS.

The files lie directly in the folder. They are hard links where the file system allows (a release is gigabytes) and
copies elsewhere. It measures and changes nothing.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.disk import files_under, sha256_of
from common.errors import UserError
from common.provenance import SOURCES_FILE, merged, read_sources
from common.store import MANIFEST_FILE, Workspace, stage
from export.data_files import DATA_FILES, write_data_files

SUMS_FILE = "SHA256SUMS"
PAGE = "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class DistConfig:
    """What belongs to a deliverable besides the models."""

    report_files: tuple[str, ...] = ("report.json", PAGE, "report.md")
    """Files of the report's folder to take along; each must be there."""


@stage(version=2)
def dist(
    config: DistConfig, workspace: Workspace, gguf: Path | None, coreml: Path | None, report: Path | None
) -> dict[str, Any]:
    """Gathers the deliverables in the workspace; a part that the recipe leaves out is None.

    Where the models carry a list of data sources, it stands there once, with a data card and the licences beside it.

    Returns:
        `files` (number of them, SHA256SUMS not counted) and `bytes`, their sum.

    Raises:
        UserError: a report file is missing, or two parts hold a file of the same name.
    """
    sources = [*_model_files(gguf), *_model_files(coreml)]
    if report is not None:
        sources += [(report / name, Path(name)) for name in config.report_files]
    data_sources = merged(*(read_sources(folder) for folder in (gguf, coreml) if folder is not None))
    written = list(DATA_FILES) if data_sources else []
    taken = sorted([*(target.as_posix() for _, target in sources), *written])
    doubled = {name for name in taken if taken.count(name) > 1}
    if doubled:
        raise UserError(
            wanted="files of different names from the GGUF, Core ML and report stages",
            got=f"{', '.join(sorted(doubled))} twice",
            next_step="Give the stages different stems in the recipe.",
        )
    for source, target in sources:
        _place(source, workspace.folder / target)
    if data_sources:
        write_data_files(workspace.folder, data_sources, has_report=PAGE in taken)
    sums = [f"{sha256_of(workspace.folder / name)}  {name}\n" for name in taken]
    (workspace.folder / SUMS_FILE).write_text("".join(sums), encoding="utf-8")
    return {"files": len(taken), "bytes": sum((workspace.folder / name).stat().st_size for name in taken)}


def _model_files(folder: Path | None) -> Iterator[tuple[Path, Path]]:
    """Each file of an artifact with its path inside it, without its manifest and its list of data sources."""
    if folder is None:
        return
    for path in files_under(folder):
        inside = path.relative_to(folder)
        if inside not in (Path(MANIFEST_FILE), Path(SOURCES_FILE)):
            yield path, inside


def _place(source: Path, target: Path) -> None:
    if not source.is_file():
        raise UserError(
            wanted=f"{source.name} among the report's files",
            got=f"no such file in {source.parent}",
            next_step=f"Delete {source.parent} and build it again.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
