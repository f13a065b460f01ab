"""From a data set's name to its files: at one commit of the hub, or in a folder that stands in for the hub.

It downloads no data and reads none.
"""

from dataclasses import dataclass
from pathlib import Path

from common.disk import files_under
from common.errors import UserError
from common.sources.choosing import CARD_FILE, choose
from common.sources.names import HubDataset, HubFiles


def resolve(dataset: HubDataset, *, sources: Path | None) -> HubFiles | tuple[Path, ...]:
    """The files that `dataset` means.

    Args:
        sources: the folder DIR of SOURCES=DIR; `DIR/<org>/<name>/` then stands in for the hub, whatever the revision,
            and nothing is asked. None asks the hub, once.

    Returns:
        The files at the commit that the revision is today; with `sources`, the paths of the local files, sorted.

    Raises:
        UserError: no such data set, config, split or revision, no access, no network; no such folder in `sources`.
    """
    if sources is None:
        from common.sources.hub import HubRepository

        repository = HubRepository(dataset.name, dataset.revision)
        chosen = choose(dataset, repository)
        return HubFiles(
            name=dataset.name,
            config=dataset.config,
            revision=repository.commit,
            files=tuple(chosen),
            bytes=sum(chosen.values()),
        )
    folder = sources / dataset.name
    if not folder.is_dir():
        raise UserError(
            wanted=f"the files of the data set {dataset.name} in a folder of SOURCES",
            got=f"no folder {folder}",
            next_step="put them there, or correct SOURCES, or leave it out to ask the hub",
        )
    return tuple(folder / name for name in choose(dataset, _Folder(folder)))


@dataclass(frozen=True, slots=True)
class _Folder:
    """A local copy of a repository, or of the part of it that is wanted."""

    root: Path

    @property
    def place(self) -> str:
        return str(self.root)

    def card(self) -> str:
        card = self.root / CARD_FILE
        return card.read_text(encoding="utf-8-sig", errors="replace") if card.is_file() else ""

    def sizes_bytes(self, folder: str) -> dict[str, int]:
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files_under(self.root / folder)}
