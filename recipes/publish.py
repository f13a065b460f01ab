"""Publishes a finished `dist` artifact as `<dist>/<recipe name>/`, which is replaced as a whole.

A reader of that folder sees the old files or the new ones, never some of each. `<dist>/.<recipe name>.json` lists what
was published: files that somebody else put there are kept, licence texts (docs/publish.md) with a line in SHA256SUMS.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from common.disk import files_under, flush_one, flush_to_disk, replace_text, sha256_of
from common.store import MANIFEST_FILE, Artifact, check_checksums, exclusive
from export.licences import LICENCE_TEXTS
from export.release import SUMS_FILE

LINKED_BYTES = 2**24
"""Files from this size on are hard links to the artifact's. Smaller ones are copies, so that an editor that writes into
one does not change the artifact."""
_OF_BROWSERS = (".DS_Store", "Thumbs.db", "desktop.ini")


def publish(artifact: Artifact, folder: Path, *, say: Callable[[str], None]) -> None:
    """Replace `folder` by the artifact's files, without its manifest, unless it has them already.

    Args:
        artifact: the finished `dist`.
        folder: `<dist>/<recipe name>`.
        say: receives a line while another process publishes and this one waits, and for each file that is kept, or was
            changed by hand and is replaced.

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
        found, record = _files(folder), folder.with_name(f".{folder.name}.json")
        published = _published(record, found)
        added = {name: path for name, path in found.items() if name not in {*published, *wanted}}
        sums = _sums(wanted, added)
        if _holds(found, wanted | added, sums):
            return
        check_checksums(artifact.folder)
        for left_over in (new, old):
            if left_over.exists():
                shutil.rmtree(left_over)
        for name, source in (wanted | added).items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, new / name)
        if sums is not None:
            (new / SUMS_FILE).write_text(sums, encoding="utf-8")
        flush_to_disk(new)
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        flush_one(folder.parent)
        files = {name: file["sha256"] for name, file in artifact.manifest["files"].items()}
        replace_text(record, json.dumps(files, indent=1) + "\n")
        for name in added:
            say(f"kept {folder / name}, which the build did not make")
        for name in (name for name, sha256 in published.items() if _is_changed(old / name, sha256)):
            say(f"{folder / name} is the build's again; it was changed by hand")
        shutil.rmtree(old, ignore_errors=True)


def _published(record: Path, found: Mapping[Path, Path]) -> dict[Path, str | None]:
    """Checksums by place of what was published last; without a record, all but licence texts, with no checksum."""
    if record.is_file():
        return {Path(name): sha256 for name, sha256 in json.loads(record.read_text(encoding="utf-8")).items()}
    return {name: None for name in found if not _is_text(name)}


def _is_text(name: Path) -> bool:
    """Whether it is in `licences/<org>--<name>/`."""
    return name.parts[0] == LICENCE_TEXTS and "--" in name.parts[1]


def _is_changed(path: Path, sha256: str | None) -> bool:
    return sha256 is not None and path.is_file() and path.name != SUMS_FILE and sha256_of(path) != sha256


def _sums(wanted: dict[Path, Path], added: dict[Path, Path]) -> str | None:
    """SHA256SUMS of the build and added licence texts; None where there are none, and the build's own is complete."""
    texts = {name: path for name, path in added.items() if _is_text(name)}
    if not texts:
        return None
    own = wanted[Path(SUMS_FILE)].read_text(encoding="utf-8")
    return own + "".join(f"{sha256_of(path)}  {name.as_posix()}\n" for name, path in sorted(texts.items()))


def _holds(found: Mapping[Path, Path], wanted: dict[Path, Path], sums: str | None) -> bool:
    if found.keys() != wanted.keys() or not found:
        return False
    if sums is not None:
        wanted = {name: path for name, path in wanted.items() if name != Path(SUMS_FILE)}
        if found[Path(SUMS_FILE)].read_text(encoding="utf-8") != sums:
            return False
    return all(_same(found[name], source) for name, source in wanted.items())


def _files(folder: Path) -> dict[Path, Path]:
    """Paths by their place in the folder, without those of a file browser; empty where there is none."""
    return {path.relative_to(folder): path for path in files_under(folder) if path.name not in _OF_BROWSERS}


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
