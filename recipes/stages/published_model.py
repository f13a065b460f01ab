"""The stage `published_model`: a checkpoint of the hub, or of a folder that stands in for it, as an artifact.

It downloads what is not there, goes on where a killed download stopped, and checks that config, weights and tokenizer
are whole before anything is computed with them. It loads no model.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from common.disk import free_bytes
from common.errors import UserError
from common.metrics import progress
from common.provenance import DataSource, Terms, write_sources
from common.sources import Found, HubFiles, HubModel, fetch, found_files
from common.sources.download import require_whole, tensor_shapes
from common.sources.select import INDEX_FILE
from common.store import Workspace, stage

SPARE_BYTES = 2**30
"""Left on the disk beside a download."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModelConfig:
    """Which files, resolved."""

    files: Found | HubModel
    """Files of the hub at one commit; local files, which count by content; or the model's name, in a recipe whose
    sources are not resolved yet."""
    terms: Terms
    """Name, licence and obligations."""


def published(name: str, *, licence: str, attribution: str, obligations: tuple[str, ...] = ()) -> PublishedModelConfig:
    """A model of the hub with its terms, before its files are resolved.

    Args:
        name: `org/name`.
        licence: SPDX identifier or the publisher's own name.
        attribution: the line that is shown with whatever is made of it.
        obligations: what users who pass on a model that was made or taught by it must do, a sentence each.
    """
    url = f"https://huggingface.co/{name}"
    terms = Terms(name=name, licence=licence, url=url, attribution=attribution, obligations=obligations)
    return PublishedModelConfig(files=HubModel(name=name), terms=terms)


@stage(version=1)
def published_model(config: PublishedModelConfig, workspace: Workspace) -> dict[str, Any]:
    """Puts a model's files into the workspace: downloaded, second names of local ones, or copies from another disk.

    Returns:
        `parameters`, `bytes`, `name`, and `revision`, None for local files.

    Raises:
        UserError: no access, no network, no room on the disk; weights that are incomplete or not what the index lists.
    """
    files = found_files(config.files)
    if isinstance(files, HubFiles):
        here = sum(path.stat().st_size for path in workspace.folder.iterdir() if path.is_file())
        _require_room(workspace.folder, files.bytes - here, config.terms.name)
        for file in progress(files.files, label=config.terms.name, unit="files"):
            if not (workspace.folder / file).is_file():  # a file has its name once it is whole and checked
                fetch(files, file, workspace.folder / file)
    else:
        _place(files, workspace.folder, config.terms.name)
    num_parameters = _checked(workspace.folder, config.terms.name)
    revision = files.revision if isinstance(files, HubFiles) else None
    fields = {name: getattr(config.terms, name) for name in ("name", "licence", "url", "attribution", "obligations")}
    write_sources(workspace.folder, [DataSource(**fields, stage="model", revision=revision)])
    return {
        "parameters": num_parameters,
        "bytes": sum(path.stat().st_size for path in workspace.folder.iterdir() if path.is_file()),
        "name": config.terms.name,
        "revision": revision,
    }


def _require_room(folder: Path, missing_bytes: int, name: str) -> None:
    needed, free = missing_bytes + SPARE_BYTES, free_bytes(folder)
    if needed > free:
        raise UserError(
            wanted=f"{needed:,} bytes on the disk of {folder} for {name}",
            got=f"{free:,} bytes free",
            next_step="free some space, or build on another disk with --build",
        )


def _place(sources: Sequence[Path], folder: Path, name: str) -> None:
    """Second names of local files; copies of those that can have none (another file system, one without links)."""
    copied: list[tuple[Path, Path]] = []
    for path in sources:
        source, target = path.resolve(), folder / path.name  # the files of a model hub's cache are symbolic links
        if target.exists() and target.stat().st_size == source.stat().st_size and target.stat().st_nlink == 1:
            continue  # copied by an earlier start; the copy has its name once it is whole
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            copied.append((source, target))
    _require_room(folder, sum(source.stat().st_size for source, _ in copied), name)
    for source, target in progress(copied, label=f"copying {name}", unit="files") if copied else ():
        part = target.with_name(target.name + ".part")
        shutil.copyfile(source, part)
        os.replace(part, target)


def _checked(folder: Path, name: str) -> int:
    """Number of parameters, once everything that the folder says of itself is true."""
    config = _json(folder / "config.json", name)
    if not isinstance(config.get("model_type"), str):
        raise _unusable(name, "a config.json without model_type")
    weights = sorted(folder.glob("*.safetensors"))
    for path in weights:
        require_whole(path)
    shapes = {tensor: shape for path in weights for tensor, shape in tensor_shapes(path).items()}
    if (folder / INDEX_FILE).is_file():
        for tensor, file in _listed(_json(folder / INDEX_FILE, name), name):
            if not (folder / file).is_file():
                raise _unusable(name, f"no {file}, which {INDEX_FILE} lists")
            if tensor not in shapes:
                raise _unusable(name, f"no tensor {tensor}, which {INDEX_FILE} lists in {file}")
    _json(folder / "tokenizer.json", name)
    return sum(math.prod(shape) for shape in shapes.values())


def _listed(index: dict[str, Any], name: str) -> Iterator[tuple[str, str]]:
    listed = index.get("weight_map")
    if not isinstance(listed, dict):
        raise _unusable(name, f"an {INDEX_FILE} without weight_map")
    yield from cast(dict[str, str], listed).items()


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return cast(dict[str, Any], content)
    except (OSError, ValueError) as error:
        raise _unusable(name, f"a {path.name} that does not read ({type(error).__name__})") from error


def _unusable(name: str, got: str) -> UserError:
    return UserError(
        wanted=f"the whole model {name}: config, tokenizer and all weights",
        got=got,
        next_step="copy or download the model again",
    )
