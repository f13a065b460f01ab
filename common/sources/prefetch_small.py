"""Small files of a model that are wanted before the large ones: config.json for a plan, tokenizers to compare.

They are kept beside the lock of a build, at the commit that it holds to, so that a later start asks nobody. It knows no
format.
"""

from contextlib import suppress
from pathlib import Path

from common.errors import UserError
from common.sources.download import fetch
from common.sources.lockfile import SourcesLock
from common.sources.names import LOCK_FILE, HubFiles, HubModel

KEPT_FOLDER = "sources.kept"


def kept_file(files: HubFiles, file: str, *, build_folder: Path) -> Path:
    """One of `files`, downloaded where it is not there yet.

    Raises:
        UserError: as `fetch`.
    """
    path = _place(files, file, build_folder)
    if not path.is_file():
        fetch(files, file, path)
    return path


def small_text(wanted: HubModel, file: str, *, build_folder: Path | None) -> str:
    """What a small file of a model of the hub holds, at the commit of the build's lock where there is one.

    Nothing is written: a plan leaves no trace.

    Raises:
        UserError: no network, no such model or file, no access.
    """
    from common.sources.hub import HubRepository

    found: HubFiles | None = None
    if build_folder is not None:
        with suppress(UserError):  # a lock that does not read is for the build to say
            found = SourcesLock(build_folder / LOCK_FILE, sources=None).known(wanted)
        if found is not None and _place(found, file, build_folder).is_file():
            return _place(found, file, build_folder).read_text(encoding="utf-8", errors="replace")
    revision = wanted.revision if found is None else found.revision
    return HubRepository(wanted.name, revision, "model", is_resolved=found is not None).text(file)


def _place(files: HubFiles, file: str, build_folder: Path) -> Path:
    return build_folder / KEPT_FOLDER / f"{files.name.replace('/', '--')}@{files.revision[:12]}" / file
