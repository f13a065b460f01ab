"""The stage `dist`: what users get, in one folder: GGUF files, Core ML package, report, cards, licences, sums.

It runs last. The files are directly in the folder, publishers' licence texts in `licences/`: hard links where the file
system allows (a release is gigabytes), copies elsewhere. It measures and changes nothing. DATA.md and LICENSES.md are
drawn from the list of sources that the models carry, README.md by `export.card`. `read_release` reads a folder back.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from common.disk import files_under, sha256_of
from common.errors import UserError, not_found
from common.provenance import MODEL, SOURCES_FILE, DataSource, Terms, merged, read_sources, write_sources
from common.store import MANIFEST_FILE, Workspace, stage
from eval.report.collect import read_json
from export.card import CARD, CARD_FILES, PAGE, REPORT, CardConfig, rendered, write_card
from export.licences import LICENCE_TEXTS, duties, spdx_url, unstated

SUMS_FILE = "SHA256SUMS"
DATA_PAGE, LICENCES_PAGE = "DATA.md", "LICENSES.md"
DATA_FILES = (SOURCES_FILE, DATA_PAGE, LICENCES_PAGE)
_SUM = re.compile(r"([0-9a-f]{64})  (.+)")
KINDS = {MODEL: "モデル / model", "corpus": "テキスト / text", "conversations": "会話 / conversations"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DistConfig:
    """What belongs to a release besides the models."""

    report_files: tuple[str, ...] = (REPORT, PAGE, "report.md")
    """Files of the report's folder to include; each must be there."""
    card: CardConfig | None = field(default_factory=CardConfig)
    """What the model card says by itself; None writes no card, which makes a folder that cannot be published."""


@stage(version=7)
def dist(
    config: DistConfig,
    workspace: Workspace,
    gguf: Path | None,
    coreml: Path | None,
    report: Path | None,
    licences: Path | None = None,
) -> dict[str, Any]:
    """Gather the release in the workspace from the artifacts of the stages; a part that the recipe leaves out is None.

    Without a report the card says that nothing was measured. `licences` is a folder with the publishers' LICENSE,
    NOTICE and the like, in `<org>--<name>/` each.

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
    sources = merged(*(read_sources(part) for part in (gguf, coreml) if part is not None))
    names = [target.as_posix() for _, target in placed]
    data_files = DATA_FILES if sources else ()
    every = Counter([*names, *data_files, *(CARD_FILES if config.card else ())])
    doubled = sorted(name for name, times in every.items() if times > 1)
    if doubled:
        wanted = "files of different names from the GGUF, Core ML and report stages and this one"
        got, next_step = f"{', '.join(doubled)} twice", "give the stages different stems in the recipe"
        raise UserError("exists", wanted=wanted, got=got, next_step=next_step)
    for source, target in placed:
        _place(source, folder / target)
    if sources:
        _write_data_files(folder, sources, has_report=PAGE in names)
    if config.card is not None:
        sizes = _model_sizes(folder, [target for _, target in models])
        names += write_card(config.card, folder, sizes, sources)
    names = sorted([*names, *data_files])
    sums = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / SUMS_FILE).write_text("".join(sums), encoding="utf-8")
    return {"files": len(names), "bytes": sum((folder / name).stat().st_size for name in names)}


def _write_data_files(folder: Path, sources: Sequence[DataSource], *, has_report: bool) -> None:
    """Write `DATA_FILES`: the list for programs, the data card, and each source's terms, models included."""
    write_sources(folder, sources)
    data = [source for source in sources if source.stage != MODEL]
    known = [source.tokens_out for source in data if source.tokens_out is not None]
    data_card = rendered(
        DATA_PAGE,
        kinds=KINDS,
        rows=[{"source": source, "share": _share(source, data)} for source in data],
        tokens=sum(known) if len(known) == len(data) else None,
        unstated=unstated(data),
        has_report=has_report,
        has_models=len(data) < len(sources),
    )
    kinds: dict[Terms, list[str]] = {}  # a source under the same terms once, at whatever revisions
    for source in sources:
        kinds.setdefault(source.terms, []).append(KINDS.get(source.stage, source.stage))
    entries = [
        {"terms": terms, "kinds": dict.fromkeys(used), "text_url": spdx_url(terms.licence), "duties": duties([terms])}
        for terms, used in kinds.items()
    ]
    licences_page = rendered(LICENCES_PAGE, entries=entries, has_texts=(folder / LICENCE_TEXTS).is_dir())
    (folder / DATA_PAGE).write_text(data_card, encoding="utf-8")
    (folder / LICENCES_PAGE).write_text(licences_page, encoding="utf-8")


def _share(source: DataSource, data: Sequence[DataSource]) -> float | None:
    """A source's share of all tokens of its kind; None where any of them is not counted."""
    tokens = [other.tokens_out for other in data if other.stage == source.stage]
    total = sum(count or 0 for count in tokens)
    return (source.tokens_out or 0) / total if total and None not in tokens else None


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
    sizes = Counter[str]()
    for target in targets:
        if target.parts[0].endswith((".gguf", ".mlpackage")):
            sizes[target.parts[0]] += (folder / target).stat().st_size
    return dict(sizes)


def _licence_texts(folder: Path | None) -> Iterator[tuple[Path, Path]]:
    """Each text with its place in a release; UserError for one that is in no publisher's folder."""
    for path, inside in _model_files(folder):
        if len(inside.parts) < 2 or "--" not in inside.parts[0]:
            wanted, got = "licence texts in folders of the name <org>--<name>", f"{inside} in {folder}"
            next_step = "put it into the folder of the model or data set that it belongs to"
            raise UserError("wrong-format", wanted=wanted, got=got, next_step=next_step)
        yield path, LICENCE_TEXTS / inside


def _place(source: Path, target: Path) -> None:
    """Link the file into a release, or copy it; UserError where it is absent."""
    if not source.is_file():
        next_step = f"delete {source.parent} and build it again"
        raise not_found(f"{source.name} among the report's files in {source.parent}", next_step=next_step)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A release folder as its own files describe it."""

    folder: Path
    sums: dict[str, str]
    """sha256 by name inside the folder, as SHA256SUMS lists them."""
    sources: Sequence[DataSource]
    front_matter: dict[str, Any]
    """The fields of the card that hubs read."""
    report: Mapping[str, Any]
    """The content of report.json; empty where the release has none."""

    @property
    def names(self) -> list[str]:
        """All files that would be uploaded."""
        return [*self.sums, SUMS_FILE]


def read_release(folder: Path) -> Release:
    """Read what a release says of itself.

    Raises:
        UserError: the folder is no release, or has no card.
    """
    sums_file, next_step = folder / SUMS_FILE, "name a folder that a recipe left in dist/"
    if not sums_file.is_file():
        raise not_found(f"a release folder with {SUMS_FILE}", f"none in {folder}", next_step=next_step)
    sums: dict[str, str] = {}
    for line in sums_file.read_text(encoding="utf-8").splitlines():
        said = _SUM.fullmatch(line)
        if said is None or PurePosixPath(said[2]).is_absolute() or ".." in PurePosixPath(said[2]).parts:
            wanted = f"sums and names of files inside the release in {sums_file}"
            raise UserError("wrong-format", wanted=wanted, got=repr(line), next_step=next_step)
        sums[said[2]] = said[1]
    if CARD not in sums or not (folder / CARD).is_file():
        next_step = "build the release with a card in its recipe"
        raise not_found(f"a model card {CARD} that {SUMS_FILE} lists", f"none in {folder}", next_step=next_step)
    report = _report(folder / REPORT) if REPORT in sums and (folder / REPORT).is_file() else {}
    front_matter, sources = _front_matter(folder / CARD), read_sources(folder)
    return Release(folder=folder, sums=sums, sources=sources, front_matter=front_matter, report=report)


def _report(path: Path) -> dict[str, Any]:
    next_step = "copy the release again, or build it again"
    report = read_json(path, next_step=next_step)
    if not isinstance(report, dict):
        raise UserError("wrong-format", wanted=f"a report in {path}", got="other JSON", next_step=next_step)
    return report


def _front_matter(card: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load

    try:
        return dict(metadata_load(card) or {})
    except Exception as error:  # the YAML library has many classes
        wanted, next_step = f"front matter that is YAML in {card}", "build the release again; its card was changed"
        raise UserError("damaged", wanted=wanted, got=type(error).__name__, next_step=next_step) from None
