"""Publishes a finished `dist` artifact as `<dist>/<recipe name>/`, which is replaced as a whole.

A reader of that folder sees the old files or the new ones, never some of each. Licence texts that were added there by
hand (docs/publish.md) are kept, with their lines in SHA256SUMS.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from common.disk import files_under, flush_one, sha256_of
from common.store import MANIFEST_FILE, Artifact, check_checksums, exclusive
from export.licences import LICENCE_TEXTS
from export.release import SUMS_FILE

LINKED_BYTES = 2**24
"""Files from this size on are hard links to the artifact's. Smaller ones are copies, so that an editor that writes into
one does not change the artifact."""


def publish(artifact: Artifact, folder: Path, *, say: Callable[[str], None]) -> None:
    """Replace `folder` by the artifact's files, without its manifest, unless it has them already.

    Args:
        artifact: the finished `dist`.
        folder: `<dist>/<recipe name>`.
        say: receives a line while another process publishes and this one waits, and the licence texts that are kept.

    Raises:
        UserError: a file of the artifact is damaged.
    """
    wanted = _files(artifact.folder)
    del wanted[Path(MANIFEST_FILE)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"{folder}: another process is publishing; waiting for it"
    with exclusive(folder.with_name(f".{folder.name}.lock"), on_wait=lambda holder: say(waiting)):
        new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
        if old.is_dir() and not folder.exists():  # killed between the two renames below
            os.rename(old, folder)
        added = _added_texts(folder, wanted, built=artifact.folder.parent)
        sums = _sums(wanted, added)
        if _holds(folder, wanted | added, sums):
            return
        check_checksums(artifact.folder)
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)
        for name, source in (wanted | added).items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, new / name)
        if sums is not None:
            (new / SUMS_FILE).write_text(sums, encoding="utf-8")
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        flush_one(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
        for name in added:
            say(f"kept {folder / name}, which the build did not make")


def _added_texts(folder: Path, wanted: dict[Path, Path], *, built: Path) -> dict[Path, Path]:
    """Texts in `licences/<org>--<name>/` that are neither the artifact's nor those of an earlier one in `built`."""
    texts = {
        name: path
        for name, path in _files(folder).items()
        if name.parts[0] == LICENCE_TEXTS and "--" in name.parts[1] and not name.name.startswith(".")
    }
    earlier = [place for place in built.glob("dist-*") if place.is_dir()]
    return {
        name: path
        for name, path in texts.items()
        if name not in wanted and not any(_same(place / name, path) for place in earlier if (place / name).is_file())
    }


def _sums(wanted: dict[Path, Path], added: dict[Path, Path]) -> str | None:
    """SHA256SUMS of both; None where nothing was added, so that the artifact's own file is complete."""
    if not added:
        return None
    own = wanted[Path(SUMS_FILE)].read_text(encoding="utf-8")
    return own + "".join(f"{sha256_of(path)}  {name.as_posix()}\n" for name, path in sorted(added.items()))


def _holds(folder: Path, wanted: dict[Path, Path], sums: str | None) -> bool:
    found = _files(folder)
    if found.keys() != wanted.keys() or not found:
        return False
    if sums is not None:
        wanted = {name: path for name, path in wanted.items() if name != Path(SUMS_FILE)}
        if (folder / SUMS_FILE).read_text(encoding="utf-8") != sums:
            return False
    return all(_same(found[name], source) for name, source in wanted.items())


def _files(folder: Path) -> dict[Path, Path]:
    """Paths by their place in the folder; empty where there is none."""
    return {path.relative_to(folder): path for path in files_under(folder)}


def _same(one: Path, other: Path) -> bool:
    same_size = one.stat().st_size == other.stat().st_size
    return one.samefile(other) or (same_size and sha256_of(one) == sha256_of(other))


def _link_or_copy(source: Path, target: Path) -> None:
    # A link takes no gigabytes; where it is impossible (another file system, or one without links), the file is copied.
    with contextlib.suppress(OSError):
        if source.stat().st_size >= LINKED_BYTES:
            os.link(source, target)
            return
    shutil.copy2(source, target)
