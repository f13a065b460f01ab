"""The stage `dist`: what a user takes away, in one folder: GGUF files, Core ML package, report and SHA256SUMS.

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
from common.store import MANIFEST_FILE, Workspace, stage

SUMS_FILE = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True, slots=True)
class DistConfig:
    """What belongs to a deliverable besides the models."""

    report_files: tuple[str, ...] = ("report.json", "report.html", "report.md")
    """Files of the report's folder to take along; each must be there."""


@stage(version=1)
def dist(
    config: DistConfig, workspace: Workspace, gguf: Path | None, coreml: Path | None, report: Path | None
) -> dict[str, Any]:
    """Gathers the deliverables in the workspace; a part that the recipe leaves out is None.

    Returns:
        `files` (number of them, SHA256SUMS not counted) and `bytes`, their sum.

    Raises:
        UserError: a report file is missing, or two parts hold a file of the same name.
    """
    sources = [*_model_files(gguf), *_model_files(coreml)]
    if report is not None:
        sources += [(report / name, Path(name)) for name in config.report_files]
    taken = sorted(target.as_posix() for _, target in sources)
    doubled = {name for name in taken if taken.count(name) > 1}
    if doubled:
        raise UserError(
            wanted="files of different names from the GGUF, Core ML and report stages",
            got=f"{', '.join(sorted(doubled))} twice",
            next_step="Give the stages different stems in the recipe.",
        )
    for source, target in sources:
        _place(source, workspace.folder / target)
    sums = [f"{sha256_of(workspace.folder / name)}  {name}\n" for name in taken]
    (workspace.folder / SUMS_FILE).write_text("".join(sums), encoding="utf-8")
    return {"files": len(taken), "bytes": sum((workspace.folder / name).stat().st_size for name in taken)}


def _model_files(folder: Path | None) -> Iterator[tuple[Path, Path]]:
    """Each file of an artifact with its path inside it, without the artifact's own manifest."""
    if folder is None:
        return
    for path in files_under(folder):
        inside = path.relative_to(folder)
        if inside != Path(MANIFEST_FILE):
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
