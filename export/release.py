"""The stage `dist`: what a user takes away, in one folder: GGUF files, Core ML package, report, cards, licences, sums.

It runs last. The files lie directly in the folder, publishers' licence texts in `licences/`. They are hard links where
the file system allows (a release is gigabytes) and copies elsewhere. It measures and changes nothing: the model card
repeats what the report and the list of data sources say (`export.card`).
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.disk import files_under, sha256_of
from common.errors import UserError
from common.provenance import SOURCES_FILE, DataSource, merged, read_sources
from common.store import MANIFEST_FILE, Workspace, stage
from export.card import CARD_FILES, CardConfig, Contents, write_card
from export.card_terms import LICENCE_TEXTS
from export.data_files import DATA_FILES, write_data_files

SUMS_FILE = "SHA256SUMS"
PAGE, REPORT = "report.html", "report.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class DistConfig:
    """What belongs to a deliverable besides the models."""

    report_files: tuple[str, ...] = (REPORT, PAGE, "report.md")
    """Files of the report's folder to take along; each must be there."""
    card: CardConfig | None = field(default_factory=CardConfig)
    """What the model card says by itself; None writes no card, which makes a folder that cannot be published."""


@stage(version=6)
def dist(
    config: DistConfig,
    workspace: Workspace,
    gguf: Path | None,
    coreml: Path | None,
    report: Path | None,
    licences: Path | None = None,
) -> dict[str, Any]:
    """Gathers the deliverables in the workspace; a part that the recipe leaves out is None.

    Where the models carry a list of data sources, it stands there once, with a data card and the licences beside it.

    Args:
        config: what no manifest knows.
        workspace: where to.
        gguf: the artifact of that stage, as the next two.
        coreml: likewise.
        report: likewise; without it the card says that nothing was measured.
        licences: a folder with the publishers' LICENSE, NOTICE and the like, in `<org>--<name>/` each.

    Returns:
        `files` (number of them, SHA256SUMS not counted) and `bytes`, their sum.

    Raises:
        UserError: a report file is missing, two parts hold a file of the same name, or licences without a folder.
    """
    folder = workspace.folder
    models = [*_model_files(gguf), *_model_files(coreml)]
    placed = [*models, *_licence_texts(licences)]
    if report is not None:
        placed += [(report / name, Path(name)) for name in config.report_files]
    data_sources = merged(*(read_sources(part) for part in (gguf, coreml) if part is not None))
    names = [target.as_posix() for _, target in placed]
    _require_different([*names, *(DATA_FILES if data_sources else ()), *(CARD_FILES if config.card else ())])
    for source, target in placed:
        _place(source, folder / target)
    if data_sources:
        write_data_files(folder, data_sources, has_report=PAGE in names)
    if config.card is not None:
        sizes = _model_sizes(folder, [target for _, target in models])
        names += write_card(config.card, _contents(folder, sizes, data_sources, names))
    names = sorted([*names, *(DATA_FILES if data_sources else ())])
    sums = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / SUMS_FILE).write_text("".join(sums), encoding="utf-8")
    return {"files": len(names), "bytes": sum((folder / name).stat().st_size for name in names)}


def _contents(folder: Path, sizes: dict[str, int], sources: Sequence[DataSource], names: Sequence[str]) -> Contents:
    """What the card is told of a release in which everything else lies already."""
    return Contents(
        folder=folder,
        models=sizes,
        sources=sources,
        report=json.loads((folder / REPORT).read_text(encoding="utf-8")) if REPORT in names else None,
        has_page=PAGE in names,
    )


def _require_different(names: Iterable[str]) -> None:
    """UserError where two parts of a release would be one file."""
    doubled = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubled:
        raise UserError(
            wanted="files of different names from the GGUF, Core ML and report stages and this one",
            got=f"{', '.join(doubled)} twice",
            next_step="Give the stages different stems in the recipe.",
        )


def _model_files(folder: Path | None) -> Iterator[tuple[Path, Path]]:
    """Each file of an artifact with its path inside it, without its manifest and its list of data sources."""
    if folder is None:
        return
    for path in files_under(folder):
        inside = path.relative_to(folder)
        if inside not in (Path(MANIFEST_FILE), Path(SOURCES_FILE)):
            yield path, inside


def _model_sizes(folder: Path, targets: Iterable[Path]) -> dict[str, int]:
    """Bytes of each GGUF file and each Core ML package, a package as a whole."""
    sizes: dict[str, int] = {}
    for target in targets:
        name = target.parts[0]
        if name.endswith((".gguf", ".mlpackage")):
            sizes[name] = sizes.get(name, 0) + (folder / target).stat().st_size
    return sizes


def _licence_texts(folder: Path | None) -> Iterator[tuple[Path, Path]]:
    """Each text with its place in a release.

    Raises:
        UserError: a text that lies in no publisher's folder.
    """
    for path, inside in _model_files(folder):
        if len(inside.parts) < 2 or "--" not in inside.parts[0]:
            raise UserError(
                wanted="licence texts in folders of the name <org>--<name>",
                got=f"{inside} in {folder}",
                next_step="Put it into the folder of the model or data set whose licence it is.",
            )
        yield path, LICENCE_TEXTS / inside


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
