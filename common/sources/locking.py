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
from common.sources.names import HubDataset, HubFiles, HubModel, Kind
from common.sources.resolving import Found, resolve
from common.sources.wholeness import require_whole

LOCK_FILE = "sources.lock.json"
_VERSION = 1


class SourcesLock:
    """The lock of one build folder."""

    def __init__(self, path: Path, *, sources: Path | None) -> None:
        """Reads `path`, which need not be there yet; `sources` is the folder that stands in for the hub, or None.

        Raises:
            UserError: the file is no lock.
        """
        self._path, self._sources = path, sources
        self._entries: dict[str, dict[str, Any]] = {}
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["version"] != _VERSION:
                    raise ValueError(f"version {content['version']}")
                self._entries = dict(content["sources"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    wanted=f"the list of resolved sources in {path}",
                    got=str(error),
                    next_step="restore the file, or delete it to resolve the sources again",
                ) from error

    def find(self, wanted: HubDataset | HubModel) -> Found:
        """The files that a name means in this build: as they were found first, or found and written down now.

        Raises:
            UserError: as `resolve`; a file of SOURCES is incomplete, or is not what it was; SOURCES was set then and is
                not now, or the other way round.
        """
        name = _entry_name(wanted)
        known = self._entries.get(name)
        if known is not None and (known["from"] == "hub") != (self._sources is None):
            now = "the hub" if self._sources is None else "SOURCES"
            raise UserError(
                wanted=f"{wanted.name} from {known['from']}, as this build has it in {self._path}",
                got=f"{now} instead",
                next_step=f"{'set' if self._sources is None else 'unset'} SOURCES, or build in another folder",
            )
        if self._sources is None:
            return self._on_hub(name, wanted, known)
        return self._in_folder(name, wanted, known, self._sources)

    def _on_hub(self, name: str, wanted: HubDataset | HubModel, known: dict[str, Any] | None) -> Found:
        if known is not None:
            fields = known["files"] | {"files": tuple(known["files"]["files"])}
            return HubFiles(**fields)
        found = resolve(wanted, sources=None)
        assert isinstance(found, HubFiles)
        self._write(name, {"from": "hub", "files": asdict(found)})
        return found

    def _in_folder(
        self, name: str, wanted: HubDataset | HubModel, known: dict[str, Any] | None, sources: Path
    ) -> Found:
        found = resolve(wanted, sources=sources)
        assert not isinstance(found, HubFiles)
        folder = sources / wanted.name
        before: dict[str, Any] = {} if known is None else known["files"]
        now = {
            path.relative_to(folder).as_posix(): _identity(path, before.get(path.relative_to(folder).as_posix()))
            for path in progress(found, label=f"checking {wanted.name}", unit="files")
        }
        if known is not None:
            self._require_same(wanted.name, before, now)
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


def _entry_name(wanted: HubDataset | HubModel) -> str:
    revision = "" if wanted.revision is None else f"@{wanted.revision}"
    if isinstance(wanted, HubModel):
        kind: Kind = "model"
        return f"{kind} {wanted.name}{revision}"
    config = "" if wanted.config is None else f":{wanted.config}"
    split = "" if wanted.split == "train" else f" split {wanted.split}"
    files = "".join(f" {pattern}" for pattern in wanted.files)
    return f"dataset {wanted.name}{config}{revision}{split}{files}"


def _identity(path: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """Size, time and sha256; a file of the size and time that are known is not read again."""
    stat = path.stat()
    if before is not None and (before["bytes"], before["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
        remember_sha256(path, before["sha256"])
        return before
    require_whole(path)
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_of(path)}
