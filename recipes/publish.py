"""Puts a finished `dist` artifact where people look for it: `<dist>/<recipe name>/`, replaced as a whole.

A reader of that folder sees the old files or the new ones, never some of each. What people may add there by hand are
licence texts (docs/publish.md): they stay, with their lines in SHA256SUMS. It knows no format of a model.
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
"""Files from this size on are second names of the artifact's. Smaller ones are copies: an editor that writes into one
must not change what was built."""


def publish(artifact: Artifact, folder: Path, *, say: Callable[[str], None]) -> None:
    """Make `folder` hold the artifact's files (without its manifest); does nothing where it already does.

    Args:
        artifact: the finished `dist`.
        folder: `<dist>/<recipe name>`, replaced.
        say: told when another process is publishing and must be waited for, and which licence texts were kept.

    Raises:
        UserError: a file of the artifact is damaged.
    """
    wanted = {path.relative_to(artifact.folder): path for path in files_under(artifact.folder)}
    del wanted[Path(MANIFEST_FILE)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"{folder}: another process is publishing; waiting for it"
    with exclusive(folder.with_name(f".{folder.name}.lock"), on_wait=lambda holder: say(waiting)):
        new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
        if old.is_dir() and not folder.exists():  # killed between the two renamings below
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
    """Texts in `licences/<org>--<name>/` that no build made: neither the artifact nor an earlier one beside it."""
    found = {path.relative_to(folder): path for path in files_under(folder)} if folder.is_dir() else {}
    texts = {
        name: path
        for name, path in found.items()
        if name.parts[0] == LICENCE_TEXTS and "--" in name.parts[1] and not name.name.startswith(".")
    }
    earlier = [place for place in built.glob("dist-*") if place.is_dir()]
    return {
        name: path
        for name, path in texts.items()
        if name not in wanted and not any(_same(place / name, path) for place in earlier if (place / name).is_file())
    }


def _sums(wanted: dict[Path, Path], added: dict[Path, Path]) -> str | None:
    """SHA256SUMS of both; None where the artifact's own file says it all."""
    if not added:
        return None
    own = wanted[Path(SUMS_FILE)].read_text(encoding="utf-8")
    return own + "".join(f"{sha256_of(path)}  {name.as_posix()}\n" for name, path in sorted(added.items()))


def _holds(folder: Path, wanted: dict[Path, Path], sums: str | None) -> bool:
    found = {path.relative_to(folder): path for path in files_under(folder)} if folder.is_dir() else {}
    if found.keys() != wanted.keys() or not found:
        return False
    if sums is not None:
        wanted = {name: path for name, path in wanted.items() if name != Path(SUMS_FILE)}
        if (folder / SUMS_FILE).read_text(encoding="utf-8") != sums:
            return False
    return all(_same(found[name], source) for name, source in wanted.items())


def _same(one: Path, other: Path) -> bool:
    if one.samefile(other):
        return True
    return one.stat().st_size == other.stat().st_size and sha256_of(one) == sha256_of(other)


def _link_or_copy(source: Path, target: Path) -> None:
    # A second name costs no gigabytes; another file system, or one without links, gets a copy.
    with contextlib.suppress(OSError):
        if source.stat().st_size >= LINKED_BYTES:
            os.link(source, target)
            return
    shutil.copy2(source, target)
