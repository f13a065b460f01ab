"""What names were resolved to when a build began: a JSON file in its folder, which every later start keeps to.

On the hub a branch moves; the lock holds the commit. In a folder of SOURCES a file may change; the lock holds each
file's sha256. It contains no token. Small files of a model that are needed before the large ones (config.json for a
plan, tokenizers to compare) are kept next to the lock, at its commit, so that a later start makes no request.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.disk import remember_sha256, replace_text, sha256_of
from common.errors import UserError, damaged, not_found
from common.metrics import progress
from common.sources.download import fetch, require_whole
from common.sources.hub import Found, HubRepository, licence_files, resolve
from common.sources.names import LOCK_FILE, HubDataset, HubFiles, HubModel

KEPT_FOLDER = "sources.kept"
_VERSION = 1
_Entries = dict[str, dict[str, Any]]


class SourcesLock:
    """The lock of one build folder."""

    def __init__(self, path: Path, *, sources: Path | None, ask: bool = True) -> None:
        """Reads `path`, which need not exist yet; UserError ("damaged") where it is no lock.

        `sources` is the folder that replaces the hub, or None. Without `ask`, what is not in the lock is refused
        ("not-found") and no request is made.
        """
        self._path, self._sources, self._ask = path, sources, ask
        self._entries: _Entries = {}
        if path.is_file():
            try:
                self._entries = _read(path.read_text(encoding="utf-8"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                next_step = "restore the file, or delete it to resolve the sources again"
                raise damaged(f"the list of resolved sources in {path}", error, next_step=next_step) from error

    def find(self, wanted: HubDataset | HubModel, *, max_files: int | None = None) -> Found:
        """The files that a name means in this build: as first resolved, or resolved and recorded now.

        Of more than `max_files` files only the first, by path, are listed and read.

        Raises:
            UserError: as `resolve`; a file of SOURCES is incomplete or has changed; SOURCES was set then and is not
                now, or the other way round.
        """
        name = _entry_name(wanted, max_files)
        known = self._entries.get(name)
        if known is not None and (known["from"] == "hub") != (self._sources is None):
            now, action = ("the hub", "set") if self._sources is None else ("SOURCES", "unset")
            place = f"{wanted.name} from {known['from']}, as this build has it in {self._path}"
            next_step = f"{action} SOURCES, or build in another folder"
            raise UserError("contradiction", wanted=place, got=f"{now} instead", next_step=next_step)
        if self._sources is None:
            return self._on_hub(name, wanted.name, lambda: resolve(wanted, sources=None, max_files=max_files))
        if known is None:
            self._require_asking(wanted.name)
        return self._in_folder(name, resolve(wanted, sources=self._sources, max_files=max_files), wanted.name)

    def licences(self, dataset: HubDataset, found: Found) -> Found:
        """The licence texts in the repository of `found`: resolved once at its commit, then known."""
        if not isinstance(found, HubFiles):
            return licence_files(dataset, found, sources=self._sources)
        name = f"licences of dataset {dataset.name}@{found.revision}"
        return self._on_hub(name, dataset.name, lambda: licence_files(dataset, found, sources=None))

    def known(self, wanted: HubDataset | HubModel, *, max_files: int | None = None) -> HubFiles | None:
        """What a name was resolved to on the hub before; None if it was not. Makes no request."""
        entry = self._entries.get(_entry_name(wanted, max_files))
        return _hub_files(entry) if entry is not None and entry["from"] == "hub" else None

    def _require_asking(self, name: str) -> None:
        if not self._ask:
            raise not_found(f"what {name} was resolved to, in {self._path}", "nothing", next_step="start the build")

    def _on_hub(self, name: str, repository: str, ask: Callable[[], Found]) -> HubFiles:
        if name not in self._entries:
            self._require_asking(repository)
            found = ask()
            assert isinstance(found, HubFiles)
            self._write(name, {"from": "hub", "files": asdict(found)})
        return _hub_files(self._entries[name])

    def _in_folder(self, name: str, found: Found, repository: str) -> Found:
        assert not isinstance(found, HubFiles) and self._sources is not None
        folder, known = self._sources / repository, self._entries.get(name)
        before: dict[str, Any] = {} if known is None else known["files"]
        now = {
            path.relative_to(folder).as_posix(): _identity(path, before.get(path.relative_to(folder).as_posix()))
            for path in progress(found, label=f"checking {repository}", unit="files")
        }
        if known is not None:
            self._require_same(repository, before, now)
        if now != before:
            self._write(name, {"from": "SOURCES", "files": now})
        return found

    def _require_same(self, repository: str, before: dict[str, Any], now: dict[str, Any]) -> None:
        for file in sorted(before.keys() | now.keys()):
            if file not in now:
                got = "no such file"
            elif file not in before:
                got = "a new file"
            elif now[file]["sha256"] != before[file]["sha256"]:
                got = f"other bytes, sha256 {now[file]['sha256'][:12]} and not {before[file]['sha256'][:12]}"
            else:
                continue
            next_step = f"restore it, or delete {self._path} to build from the present files"
            raise damaged(f"{file} of {repository} in SOURCES as this build began with it", got, next_step=next_step)

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self._entries[name] = entry
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"version": _VERSION, "sources": dict(sorted(self._entries.items()))}
        replace_text(self._path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def kept_file(files: HubFiles, file: str, *, build_folder: Path) -> Path:
    """One of `files`, downloaded if it is not there yet; errors as `fetch`."""
    path = _kept_path(files, file, build_folder)
    if not path.is_file():
        fetch(files, file, path)
    return path


def small_text(wanted: HubModel, file: str, *, build_folder: Path | None) -> str:
    """The content of a small file of a model of the hub, at the commit of the build's lock if there is one.

    Writes nothing: a plan leaves no trace. UserError without network or access, or if there is no such model or file.
    """
    found: HubFiles | None = None
    if build_folder is not None:
        with suppress(UserError):  # a damaged lock is the build's error, not the plan's
            found = SourcesLock(build_folder / LOCK_FILE, sources=None).known(wanted)
        if found is not None and _kept_path(found, file, build_folder).is_file():
            return _kept_path(found, file, build_folder).read_text(encoding="utf-8", errors="replace")
    revision = wanted.revision if found is None else found.revision
    return HubRepository(wanted.name, revision, "model", is_resolved=found is not None).text(file)


def _kept_path(files: HubFiles, file: str, build_folder: Path) -> Path:
    return build_folder / KEPT_FOLDER / f"{files.name.replace('/', '--')}@{files.revision[:12]}" / file


def _entry_name(wanted: HubDataset | HubModel, max_files: int | None) -> str:
    """The name of an entry: everything that decides which files it has."""
    revision = "" if wanted.revision is None else f"@{wanted.revision}"
    if isinstance(wanted, HubModel):
        return f"{wanted.kind} {wanted.name}{revision}"
    config = "" if wanted.config is None else f":{wanted.config}"
    split = "" if wanted.split == "train" else f" split {wanted.split}"
    files = "".join(f" {pattern}" for pattern in wanted.files)
    first = "" if max_files is None else f" first {max_files} files"
    return f"{wanted.kind} {wanted.name}{config}{revision}{split}{files}{first}"


def _read(text: str) -> _Entries:
    """The entries of a lock. ValueError, KeyError, TypeError or AttributeError if any is malformed."""
    content = json.loads(text)
    if content["version"] != _VERSION:
        raise ValueError(f"version {content['version']}")
    entries: _Entries = dict(content["sources"])
    for name, entry in entries.items():
        try:
            if entry["from"] == "hub":
                _hub_files(entry)
            elif entry["from"] == "SOURCES":
                for listed in entry["files"].values():
                    _ = int(listed["bytes"]) + int(listed["mtime_ns"]), bytes.fromhex(listed["sha256"])
            else:
                raise ValueError(entry["from"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # a UserError is a ValueError
            raise ValueError(f'an entry "{name}" without a commit and without checksums') from error
    return entries


def _hub_files(entry: dict[str, Any]) -> HubFiles:
    return HubFiles(**entry["files"] | {"files": tuple(entry["files"]["files"])})


def _identity(path: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """Size, time and sha256; a file whose size and time are those of `before` is not read again."""
    stat = path.stat()
    if before is not None and (before["bytes"], before["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
        remember_sha256(path, before["sha256"])
        return before
    require_whole(path)
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_of(path)}
