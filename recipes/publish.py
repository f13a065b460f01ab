"""Puts a finished `dist` artifact where people look for it: `<dist>/<recipe name>/`, replaced as a whole.

A reader of that folder sees the old files or the new ones, never some of each. It knows files and no format.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from common.disk import files_under, flush_one, sha256_of
from common.store import MANIFEST_FILE, Artifact, check_checksums, exclusive


def publish(artifact: Artifact, folder: Path, *, say: Callable[[str], None]) -> None:
    """Make `folder` hold exactly the artifact's files (without its manifest); does nothing where it already does.

    Args:
        artifact: the finished `dist`.
        folder: `<dist>/<recipe name>`, replaced.
        say: told when another process is publishing and must be waited for.

    Raises:
        UserError: a file of the artifact is damaged.
    """
    wanted = {path.relative_to(artifact.folder): path for path in files_under(artifact.folder)}
    del wanted[Path(MANIFEST_FILE)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"{folder}: another process is publishing; waiting for it"
    with exclusive(folder.with_name(f".{folder.name}.lock"), on_wait=lambda holder: say(waiting)):
        if _holds(folder, wanted):
            return
        check_checksums(artifact.folder)
        new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
        for left_over in (new, old):
            shutil.rmtree(left_over, ignore_errors=True)
        for name, source in wanted.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, new / name)
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        flush_one(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def _holds(folder: Path, wanted: dict[Path, Path]) -> bool:
    if not folder.is_dir():
        return False
    found = {path.relative_to(folder): path for path in files_under(folder)}
    return found.keys() == wanted.keys() and all(_same(found[name], source) for name, source in wanted.items())


def _same(one: Path, other: Path) -> bool:
    if one.samefile(other):
        return True
    return one.stat().st_size == other.stat().st_size and sha256_of(one) == sha256_of(other)


def _link_or_copy(source: Path, target: Path) -> None:
    # A second name costs no gigabytes; another file system, or one without links, gets a copy.
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
