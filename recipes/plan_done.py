"""How much of a recipe's build lies in its folder already: only what a start with the present numbers would find.

Artifacts of other recipes and of earlier numbers stay where they are and are no room; nor are second names of one file,
nor files that lie in SOURCES anyway. It builds nothing and asks nobody.
"""

from contextlib import suppress
from pathlib import Path

from common.disk import files_under
from common.errors import UserError
from common.sources import HubFiles
from common.store import Artifact, StageFunction, artifact_key
from recipes.recipe import Recipe, names_of, order, walk
from recipes.resolving import Resolved, Resolver


def done_here(recipe: Recipe, build_folder: Path, *, sources: Path | None) -> int:
    """`done_bytes` as far as the lock beside the build tells what names stand for."""
    if not build_folder.is_dir():
        return 0
    resolver = Resolver(build_folder, sources=sources, ask=False)
    for until in reversed(order(recipe)):
        resolved, refused = resolver.attempt(names_of(recipe, until))
        if not refused:
            return done_bytes(recipe, resolved, build_folder=build_folder, until=until)
    return 0


def done_bytes(recipe: Recipe, resolved: Resolved, *, build_folder: Path, until: str | None = None) -> int:
    """Bytes of the artifacts that are finished or half done, each file once.

    Args:
        recipe: the numbers.
        resolved: its names, all that the artifacts up to `until` need: without, keys are not known.
        build_folder: where.
        until: the last artifact that counts; None counts them all.
    """
    local = [
        path for model in resolved.models.values() if not isinstance(model.files, HubFiles) for path in model.files
    ]
    linked = {_identity(path) for path in local}
    sizes: dict[tuple[int, int], int] = {}
    for folder in _present_folders(recipe, resolved, build_folder, until):
        for path in files_under(folder):
            sizes[_identity(path)] = path.stat().st_size
    return sum(size for identity, size in sizes.items() if identity not in linked)


def _present_folders(recipe: Recipe, resolved: Resolved, build_folder: Path, until: str | None) -> list[Path]:
    """The folders that a start would find or go on in, as far as they are there."""
    folders: list[Path] = []

    def step(name: str, function: StageFunction, config: object, *inputs: Artifact | None) -> Artifact:
        called = f"{function.__module__}:{function.__qualname__}"
        keys = [None if artifact is None else artifact.key for artifact in inputs]
        key = artifact_key(name, called, function.__dict__["version"], config, keys)
        folder = build_folder / f"{name}-{key[:8]}"
        folders.extend(place for place in (folder, folder.with_name(folder.name + ".partial")) if place.is_dir())
        return Artifact(name=name, key=key, folder=folder, manifest={})

    with suppress(UserError):  # benchmark files that are not there yet: what reads them is not there either
        walk(recipe, resolved, step, until=until)
    return folders


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino
