"""What names stood for when they were resolved first: a JSON file beside the build, which every later run keeps to.

On the hub a branch moves; the lock holds the commit. In a folder of SOURCES a file may change; the lock holds each
file's sha256. It downloads nothing, and no token is in it.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.disk import remember_sha256, replace_text, sha256_of
from common.errors import UserError
from common.metrics import progress
from common.sources.find import Found, licence_files, resolve
from common.sources.integrity import require_whole
from common.sources.names import HubDataset, HubFiles, HubModel, Kind

_VERSION = 1
_Entries = dict[str, dict[str, Any]]


class SourcesLock:
    """The lock of one build folder."""

    def __init__(self, path: Path, *, sources: Path | None, ask: bool = True) -> None:
        """Reads `path`, which need not be there yet.

        Args:
            path: the lock.
            sources: the folder that stands in for the hub, or None.
            ask: False refuses what is not in the lock, and looks nowhere else.

        Raises:
            UserError: the file is no lock.
        """
        self._path, self._sources, self._ask = path, sources, ask
        self._entries: _Entries = {}
        if path.is_file():
            try:
                self._entries = _read(path.read_text(encoding="utf-8"))
            except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
                raise UserError(
                    wanted=f"the list of resolved sources in {path}",
                    got=error.got if isinstance(error, UserError) else str(error),
                    next_step="restore the file, or delete it to resolve the sources again",
                ) from error

    def find(self, wanted: HubDataset | HubModel, *, max_files: int | None = None) -> Found:
        """The files that a name means in this build: as they were found first, or found and written down now.

        Args:
            wanted: the name.
            max_files: only the first so many, by path; the others are neither listed nor read.

        Raises:
            UserError: as `resolve`; a file of SOURCES is incomplete, or is not what it was; SOURCES was set then and is
                not now, or the other way round.
        """
        name = entry_name(wanted, max_files=max_files)
        known = self._entries.get(name)
        if known is not None and (known["from"] == "hub") != (self._sources is None):
            now = "the hub" if self._sources is None else "SOURCES"
            raise UserError(
                wanted=f"{wanted.name} from {known['from']}, as this build has it in {self._path}",
                got=f"{now} instead",
                next_step=f"{'set' if self._sources is None else 'unset'} SOURCES, or build in another folder",
            )
        if known is None:
            self._require_asking(wanted.name)
        if self._sources is not None:
            return self._in_folder(name, resolve(wanted, sources=self._sources, max_files=max_files), wanted.name)
        if known is not None:
            return _hub_files(known)
        return self._from_hub(name, resolve(wanted, sources=None, max_files=max_files))

    def licences(self, dataset: HubDataset, found: Found) -> Found:
        """The licence texts in the repository of `found`: asked for once at its commit, and then known.

        Raises:
            UserError: as `resolve`.
        """
        if not isinstance(found, HubFiles):
            return licence_files(dataset.name, "dataset", found, sources=self._sources)
        name = f"licences of dataset {dataset.name}@{found.revision}"
        if name in self._entries:
            return _hub_files(self._entries[name])
        self._require_asking(dataset.name)
        return self._from_hub(name, licence_files(dataset.name, "dataset", found, sources=None))

    def known(self, wanted: HubDataset | HubModel, *, max_files: int | None = None) -> HubFiles | None:
        """What a name was resolved to on the hub before; None where nobody has asked. It asks nobody."""
        entry = self._entries.get(entry_name(wanted, max_files=max_files))
        return _hub_files(entry) if entry is not None and entry["from"] == "hub" else None

    def _require_asking(self, name: str) -> None:
        if not self._ask:
            raise UserError(
                wanted=f"what {name} was resolved to, in {self._path}", got="nothing", next_step="start the build"
            )

    def _from_hub(self, name: str, found: Found) -> HubFiles:
        assert isinstance(found, HubFiles)
        self._write(name, {"from": "hub", "files": asdict(found)})
        return found

    def _in_folder(self, name: str, found: Found, called: str) -> Found:
        assert not isinstance(found, HubFiles) and self._sources is not None
        folder, known = self._sources / called, self._entries.get(name)
        before: dict[str, Any] = {} if known is None else known["files"]
        now = {
            path.relative_to(folder).as_posix(): _identity(path, before.get(path.relative_to(folder).as_posix()))
            for path in progress(found, label=f"checking {called}", unit="files")
        }
        if known is not None:
            self._require_same(called, before, now)
        if now != before:
            self._write(name, {"from": "SOURCES", "files": now})
        return found

    def _require_same(self, name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
        for file in sorted(before.keys() | now.keys()):
            if file not in now:
                got = "no such file"
            elif file not in before:
                got = "a file that was not there"
            elif now[file]["sha256"] != before[file]["sha256"]:
                got = f"other bytes, sha256 {now[file]['sha256'][:12]} and not {before[file]['sha256'][:12]}"
            else:
                continue
            raise UserError(
                wanted=f"{file} of {name} in SOURCES as this build began with it",
                got=got,
                next_step=f"restore it, or delete {self._path} to build from what is there now",
            )

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self._entries[name] = entry
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"version": _VERSION, "sources": dict(sorted(self._entries.items()))}
        replace_text(self._path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def entry_name(wanted: HubDataset | HubModel, *, max_files: int | None = None) -> str:
    """What a lock calls a name: everything that decides about its files is in it."""
    revision = "" if wanted.revision is None else f"@{wanted.revision}"
    if isinstance(wanted, HubModel):
        kind: Kind = "model"
        return f"{kind} {wanted.name}{revision}"
    config = "" if wanted.config is None else f":{wanted.config}"
    split = "" if wanted.split == "train" else f" split {wanted.split}"
    files = "".join(f" {pattern}" for pattern in wanted.files)
    first = "" if max_files is None else f" first {max_files} files"
    return f"dataset {wanted.name}{config}{revision}{split}{files}{first}"


def _read(text: str) -> _Entries:
    """The entries of a lock; whatever is wrong with one of them is said here and not where it is used."""
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
        except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            raise ValueError(f'an entry "{name}" that says neither commit nor checksums') from error
    return entries


def _hub_files(entry: dict[str, Any]) -> HubFiles:
    return HubFiles(**entry["files"] | {"files": tuple(entry["files"]["files"])})


def _identity(path: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """Size, time and sha256; a file of the size and time that are known is not read again."""
    stat = path.stat()
    if before is not None and (before["bytes"], before["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
        remember_sha256(path, before["sha256"])
        return before
    require_whole(path)
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_of(path)}
