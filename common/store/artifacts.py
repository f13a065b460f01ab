"""What is finished: an artifact is a folder with a manifest, and the manifest is written last.

A folder without a manifest is no artifact. Reuse checks that every listed file is there with its size; a stage that is
about to read an artifact checks the checksums as well. It builds nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.disk import files_under, sha256_of
from common.errors import UserError

MANIFEST_FILE = "manifest.json"
SCRATCH_FOLDER = "scratch"

_FIELDS = (
    *("name", "key", "function", "version", "config", "inputs"),
    *("facts", "files", "machine", "seconds", "resumed", "peak_bytes"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A stage's finished result."""

    name: str
    """What the recipe calls it, such as "corpus"."""
    key: str
    """Identity of everything that went into it: 64 hex digits."""
    folder: Path
    """Where its files and its `manifest.json` lie."""
    manifest: dict[str, Any]
    """The manifest, as `read_manifest` returns it."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished artifact: `{name, key, function, version, config, inputs, facts, files, machine, ..}`.

    `seconds` and `peak_bytes` are those of the last start, which is not all of it where `resumed` is true.

    Raises:
        UserError: there is none, or it is broken; names the file.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            wanted=f"a finished artifact in {folder}",
            got=f"no {MANIFEST_FILE} there",
            next_step="delete that folder and start again",
        ) from error
    except ValueError as error:
        raise _broken(path, str(error)) from error
    if not isinstance(manifest, dict):
        raise _broken(path, "no JSON object")
    missing = [field for field in _FIELDS if field not in manifest]
    if missing:
        raise _broken(path, f"no {', '.join(missing)}")
    return manifest


def open_artifact(folder: Path, *, key: str) -> Artifact:
    """The finished artifact in `folder`, every file there with its size.

    Raises:
        UserError: the manifest is absent, broken or of another key, or a file is missing or of another size.
    """
    manifest = read_manifest(folder)
    if manifest["key"] != key:
        raise UserError(
            wanted=f"the artifact {key} in {folder}",
            got=f"another one, {manifest['key']}",
            next_step="delete that folder, or build in another one, and start again",
        )
    for name, listed in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise _damaged(path, wanted=f"{listed['bytes']:,} bytes", got="no such file", folder=folder)
        if path.stat().st_size != listed["bytes"]:
            got = f"{path.stat().st_size:,} bytes"
            raise _damaged(path, wanted=f"{listed['bytes']:,} bytes", got=got, folder=folder)
    return Artifact(name=manifest["name"], key=key, folder=folder, manifest=manifest)


def check_checksums(folder: Path) -> None:
    """Raise UserError at the first file whose size or sha256 differs from the manifest's, naming it."""
    artifact = open_artifact(folder, key=read_manifest(folder)["key"])
    for name, listed in artifact.manifest["files"].items():
        found = sha256_of(folder / name)
        if found != listed["sha256"]:
            raise _damaged(folder / name, wanted=f"sha256 {listed['sha256']}", got=found, folder=folder)


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file under `folder` by relative path, without the manifest and the scratch folder."""
    files: dict[str, dict[str, Any]] = {}
    for path in files_under(folder):
        name = path.relative_to(folder)
        if name.parts[0] not in (MANIFEST_FILE, SCRATCH_FOLDER):
            files[name.as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return files


def _damaged(path: Path, *, wanted: str, got: str, folder: Path) -> UserError:
    return UserError(
        wanted=f"{wanted} in {path}, as its manifest lists", got=got, next_step=f"delete {folder} and start again"
    )


def _broken(path: Path, why: str) -> UserError:
    return UserError(wanted=f"a whole manifest in {path}", got=why, next_step=f"delete {path.parent} and start again")
