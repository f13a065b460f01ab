"""From a name to files: at one commit of the hub, or in a folder that stands in for the hub.

It downloads no data and reads none.
"""

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from common.disk import files_under
from common.errors import UserError
from common.sources.names import NOUNS, HubDataset, HubFiles, HubModel, Kind
from common.sources.select import Repository, choose, is_licence_text
from common.sources.select_models import choose_model

Found = HubFiles | tuple[Path, ...]
"""Files at one commit of the hub, or local files."""


def found_files(files: Found | HubDataset | HubModel) -> Found:
    """`files` where they are resolved.

    Raises:
        UserError: only a name is known.
    """
    if isinstance(files, HubDataset | HubModel):
        raise UserError(
            "not-found",
            wanted=f"the files of {files.name}",
            got="its name alone",
            next_step="resolve the recipe's sources first: recipes.resolve.resolve(recipe, build_folder)",
        )
    return files


def resolve(wanted: HubDataset | HubModel, *, sources: Path | None, max_files: int | None = None) -> Found:
    """The files that a name means.

    Args:
        sources: the folder DIR of SOURCES=DIR; `DIR/<org>/<name>/` then stands in for the hub, whatever the revision,
            and nothing is asked. None asks the hub, once.
        max_files: only the first so many files, by path; None takes all.

    Returns:
        The files at the commit that the revision is today; with `sources`, the paths of the local files, sorted.

    Raises:
        UserError: no such repository, config, split or revision, no access, no network; no such folder in `sources`; a
            model without its config, weights or tokenizer.
    """
    kind: Kind = "model" if isinstance(wanted, HubModel) else "dataset"
    if sources is None:
        from common.sources.hub import HubRepository

        repository = HubRepository(wanted.name, wanted.revision, kind)
        chosen = dict(islice(_chosen(wanted, repository).items(), max_files))
        return HubFiles(
            kind=kind,
            name=wanted.name,
            config=None if isinstance(wanted, HubModel) else wanted.config,
            revision=repository.commit,
            files=tuple(chosen),
            bytes=sum(chosen.values()),
        )
    folder = sources / wanted.name
    if not folder.is_dir():
        raise UserError(
            wanted=f"the files of the {NOUNS[kind]} {wanted.name} in a folder of SOURCES",
            got=f"no folder {folder}",
            next_step="put them there, or correct SOURCES, or leave it out to ask the hub",
        )
    return tuple(folder / name for name in islice(_chosen(wanted, _Folder(folder)), max_files))


def licence_files(name: str, kind: Kind, found: Found, *, sources: Path | None) -> Found:
    """The licence texts that lie in the repository that `found` was found in; none where there are none.

    Args:
        name: `org/name`.
        found: what `resolve` gave for it; on the hub its commit is asked.
        sources: as `resolve`.
    """
    if sources is None:
        from common.sources.hub import HubRepository

        assert isinstance(found, HubFiles)
        repository = HubRepository(name, found.revision, kind, is_resolved=True)
        sizes = {file: size for file, size in repository.sizes_bytes("").items() if is_licence_text(file)}
        return replace(found, files=tuple(sorted(sizes)), bytes=sum(sizes.values()))
    files = sorted((sources / name).iterdir()) if (sources / name).is_dir() else []
    return tuple(path for path in files if path.is_file() and is_licence_text(path.name))


def _chosen(wanted: HubDataset | HubModel, repository: Repository) -> dict[str, int]:
    return choose_model(repository) if isinstance(wanted, HubModel) else choose(wanted, repository)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A local copy of a repository, or of the part of it that is wanted."""

    root: Path

    @property
    def place(self) -> str:
        return str(self.root)

    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""

    def sizes_bytes(self, folder: str) -> dict[str, int]:
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files_under(self.root / folder)}
