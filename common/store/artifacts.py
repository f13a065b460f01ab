"""Finished artifacts: a folder with a manifest, which is written last. A folder without a manifest is no artifact.

Reuse checks that every listed file exists with its size; before a stage reads an artifact, its checksums are checked
as well.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.disk import files_under, sha256_of
from common.errors import UserError, damaged, not_found
from common.store.keys import FORMAT, reason_key

MANIFEST_FILE = "manifest.json"
SCRATCH_FOLDER = "scratch"
NOT_HERE = "not_here"
"""The fact that holds the reason of an artifact without a result."""

_FIELDS = (
    *("name", "key", "function", "version", "config", "inputs"),
    *("facts", "files", "machine", "seconds", "resumed", "peak_bytes"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A stage's finished result, or the reason why the machine that ran the stage has none."""

    name: str
    """What the recipe calls it, such as "corpus"."""
    key: str
    """Identity for readers, 64 hex digits: the manifest's `key`, or `reason_key` of it where `reason` is set."""
    folder: Path
    """Where its files and its `manifest.json` are."""
    manifest: dict[str, Any]
    """The manifest, as `read_manifest` returns it."""

    @property
    def reason(self) -> str | None:
        """Why there is no result; None for a result."""
        return self.manifest.get("facts", {}).get(NOT_HERE)


def is_artifact(path: Path) -> bool:
    """Whether a folder has a manifest; a model from elsewhere may hold files of any other name."""
    return (path / MANIFEST_FILE).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact: `{format, name, key, function, version, config, inputs, facts, files, machine, ..}`.

    `seconds` and `peak_bytes` are those of the last start, which is only a part of the work where `resumed` is true.

    Raises:
        UserError: "not-found", "damaged", or "unsupported" for an artifact of another version of this product.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        next_step = "delete that folder and start again"
        raise not_found(f"a finished artifact in {folder}", f"no {MANIFEST_FILE} there", next_step=next_step) from error
    except ValueError as error:
        raise _damaged(folder, f"a whole manifest in {path}", error) from error
    if not isinstance(manifest, dict):
        raise _damaged(folder, f"a whole manifest in {path}", "no JSON object")
    found = manifest.get("format")
    if found != FORMAT:
        wanted = f"an artifact of format {FORMAT} in {folder}"
        got = "one of an older format, without a number" if found is None else f"one of format {found}"
        raise UserError("unsupported", wanted=wanted, got=got, next_step="build the folder again with this version")
    if missing := [field for field in _FIELDS if field not in manifest]:
        raise _damaged(folder, f"a whole manifest in {path}", f"no {', '.join(missing)}")
    return manifest


def key_of(manifest: dict[str, Any]) -> str:
    """The key that readers of an artifact use: a reason has another one than the result that replaces it."""
    return reason_key(manifest["key"]) if NOT_HERE in manifest["facts"] else manifest["key"]


def open_artifact(folder: Path, *, key: str | None = None) -> Artifact:
    """The finished artifact in `folder`, after a check that every file exists with its size.

    Raises:
        UserError: as `read_manifest`; "mismatch" where its key is not `key`; "damaged" for a missing file or another
            size.
    """
    manifest = read_manifest(folder)
    if key not in (None, manifest["key"]):
        wanted, got = f"the artifact {key} in {folder}", f"another one, {manifest['key']}"
        next_step = "delete that folder, or build in another one, and start again"
        raise UserError("mismatch", wanted=wanted, got=got, next_step=next_step)
    for name, listed in manifest["files"].items():
        path = folder / name
        got = f"{path.stat().st_size:,} bytes" if path.is_file() else "no such file"
        if got != (wanted := f"{listed['bytes']:,} bytes"):
            raise _damaged(folder, f"{wanted} in {path}, as its manifest lists", got)
    return Artifact(name=manifest["name"], key=key_of(manifest), folder=folder, manifest=manifest)


def check_checksums(folder: Path) -> None:
    """Raise UserError ("damaged") at the first file whose size or sha256 differs from the manifest's."""
    for name, listed in open_artifact(folder).manifest["files"].items():
        found = sha256_of(folder / name)
        if found != listed["sha256"]:
            raise _damaged(folder, f"sha256 {listed['sha256']} in {folder / name}, as its manifest lists", found)


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file under `folder` by relative path, without the manifest and the scratch folder."""
    files: dict[str, dict[str, Any]] = {}
    for path in files_under(folder):
        name = path.relative_to(folder)
        if name.parts[0] not in (MANIFEST_FILE, SCRATCH_FOLDER):
            files[name.as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return files


def _damaged(folder: Path, wanted: str, got: object) -> UserError:
    return damaged(wanted, got, next_step=f"delete {folder} and start again")
