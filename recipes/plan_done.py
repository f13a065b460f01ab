"""What of a recipe's build lies in its folder already: only what a start with the present numbers would find.

Artifacts of other recipes and of earlier numbers stay where they are and are no room; nor are second names of one file,
nor files that lie in SOURCES anyway. It builds nothing and asks nobody.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.disk import files_under
from common.errors import UserError
from common.sources import HubFiles
from common.store import MANIFEST_FILE, Artifact, StageFunction, Store
from recipes.recipe import Recipe, names_of, order, walk
from recipes.resolving import Resolved, Resolver


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What an earlier start has left for the next one."""

    half_done_bytes: int = 0
    """Of artifacts that are begun and not finished, each file once."""
    stages: frozenset[str] = frozenset()
    """Artifacts that are finished."""


def done_here(recipe: Recipe, build_folder: Path, *, sources: Path | None) -> Done:
    """What is done, as far as the lock beside the build tells what names stand for."""
    if not build_folder.is_dir():
        return Done()
    resolver = Resolver(build_folder, sources=sources, ask=False)
    for until in reversed(order(recipe)):
        resolved, refused = resolver.attempt(names_of(recipe, until))
        if not refused:
            return _done(recipe, resolved, build_folder, until)
    return Done()


def _done(recipe: Recipe, resolved: Resolved, build_folder: Path, until: str) -> Done:
    """What is there of the artifacts up to `until`, all of whose names are resolved: without, keys are not known."""
    local = [
        path for model in resolved.models.values() if not isinstance(model.files, HubFiles) for path in model.files
    ]
    linked = {_identity(path) for path in local}
    sizes: dict[tuple[int, int], int] = {}
    folders = _folders(recipe, resolved, build_folder, until)
    for folder in filter(Path.is_dir, map(_half_done, folders.values())):
        for path in files_under(folder):
            sizes[_identity(path)] = path.stat().st_size
    return Done(
        half_done_bytes=sum(size for identity, size in sizes.items() if identity not in linked),
        stages=frozenset(name for name, folder in folders.items() if (folder / MANIFEST_FILE).is_file()),
    )


def _folders(recipe: Recipe, resolved: Resolved, build_folder: Path, until: str) -> dict[str, Path]:
    """By artifact the folder in which a start would find it, there or not."""
    folders: dict[str, Path] = {}
    store = Store(build_folder)

    def step(name: str, function: StageFunction, config: object, *inputs: Artifact | None) -> Artifact:
        artifact = store.expected(name, function, config, *inputs)
        folders[name] = artifact.folder
        return artifact

    with suppress(UserError):  # benchmark files that are not there yet: what reads them is not there either
        walk(recipe, resolved, step, until=until)
    return folders


def _half_done(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino
