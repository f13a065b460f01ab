"""The stages `published_model` and `licence_texts`: a published checkpoint as an artifact, and its publishers' texts.

Files come from the hub, where an interrupted download continues, or from the folder that replaces the hub. No model is
loaded.
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from common.disk import free_bytes
from common.errors import UserError
from common.metrics import progress
from common.provenance import MODEL, DataSource, Terms, merged, read_sources, write_sources
from common.sources import Found, HubFiles, HubModel, fetch, found_files
from common.sources.download import require_whole, tensor_shapes
from common.sources.select import INDEX_FILE, is_licence_text
from common.store import Workspace, stage
from common.weights import require_whole_model

SPARE_BYTES = 2**30
"""Left free on the disk after a download."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModelConfig:
    """The files of a model and its terms."""

    files: Found | HubModel
    """Files of the hub at one commit; local files, which count by content; or, before the recipe is resolved, the
    model's name."""
    terms: Terms
    """Name, licence and obligations."""


def published(name: str, *, licence: str, attribution: str, obligations: tuple[str, ...] = ()) -> PublishedModelConfig:
    """A model of the hub, `org/name`, with its terms (see `common.provenance.Terms`), before its files are resolved."""
    url = f"https://huggingface.co/{name}"
    terms = Terms(name=name, licence=licence, url=url, attribution=attribution, obligations=obligations)
    return PublishedModelConfig(files=HubModel(name=name), terms=terms)


@stage(version=2)
def published_model(config: PublishedModelConfig, workspace: Workspace) -> dict[str, Any]:
    """Put a model's files into the workspace: downloads, hard links to local files, or copies from another disk.

    Returns:
        `parameters`, `bytes`, `name`, and `revision`, None for local files.

    Raises:
        UserError: no access, no network, too little disk space; config, weights or tokenizer incomplete.
    """
    folder, name, files = workspace.folder, config.terms.name, found_files(config.files)
    if isinstance(files, HubFiles):
        _require_room(folder, files.bytes - _bytes_in(folder), name)
        for file in progress(files.files, label=name, unit="files"):
            if not (folder / file).is_file():  # a file gets its name only when it is complete and checked
                fetch(files, file, folder / file)
    else:
        _link_or_copy(files, folder, name)
    num_parameters = _checked_parameters(folder, name)
    revision = files.revision if isinstance(files, HubFiles) else None
    # What a local model of this product learnt from travels on with it.
    own = [] if isinstance(files, HubFiles) else [one for path in files for one in read_sources(path.parent)]
    write_sources(folder, merged(own, [DataSource(**asdict(config.terms), stage=MODEL, revision=revision)]))
    return {"parameters": num_parameters, "bytes": _bytes_in(folder), "name": name, "revision": revision}


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _require_room(folder: Path, missing_bytes: int, name: str) -> None:
    needed, free = missing_bytes + SPARE_BYTES, free_bytes(folder)
    if needed > free:
        wanted = f"{needed:,} bytes on the disk of {folder} for {name}"
        next_step = "free some space, or build on another disk with --build"
        raise UserError("no-space", wanted=wanted, got=f"{free:,} bytes free", next_step=next_step)


def _link_or_copy(sources: Sequence[Path], folder: Path, name: str) -> None:
    """Hard links to local files; copies where a link is impossible (another file system, or one without links)."""
    copied: list[tuple[Path, Path]] = []
    for path in sources:
        source, target = path.resolve(), folder / path.name  # the files of a model hub's cache are symbolic links
        if target.exists() and target.stat().st_size == source.stat().st_size and target.stat().st_nlink == 1:
            continue  # copied by an earlier start; a copy gets its name only when it is complete
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


def _checked_parameters(folder: Path, name: str) -> int:
    """The number of parameters, after checks that config, weights, their index and the tokenizer are complete."""
    if not isinstance(_object(folder / "config.json", name).get("model_type"), str):
        raise _damaged(name, "a config.json without model_type")
    require_whole_model(folder)
    weights = sorted(folder.glob("*.safetensors"))
    for path in weights:
        require_whole(path)
    shapes = {tensor: shape for path in weights for tensor, shape in tensor_shapes(path).items()}
    if (folder / INDEX_FILE).is_file():
        weight_map = _object(folder / INDEX_FILE, name).get("weight_map")
        if not isinstance(weight_map, dict):
            raise _damaged(name, f"an {INDEX_FILE} without weight_map")
        for tensor, file in cast(dict[str, str], weight_map).items():
            if not (folder / file).is_file():
                raise _damaged(name, f"no {file}, which {INDEX_FILE} lists")
            if tensor not in shapes:
                raise _damaged(name, f"no tensor {tensor}, which {INDEX_FILE} lists in {file}")
    _object(folder / "tokenizer.json", name)
    return sum(map(math.prod, shapes.values()))


def _object(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return cast(dict[str, Any], content)
    except (OSError, ValueError) as error:
        raise _damaged(name, f"a {path.name} that cannot be parsed ({type(error).__name__})") from error


def _damaged(name: str, got: str) -> UserError:
    wanted = f"the complete model {name}: config, tokenizer and all weights"
    return UserError("damaged", wanted=wanted, got=got, next_step="copy or download the model again")


@dataclass(frozen=True, kw_only=True, slots=True)
class LicenceTexts:
    """The licence texts of one repository."""

    name: str
    """`org/name`."""
    files: Found


@dataclass(frozen=True, kw_only=True, slots=True)
class LicenceTextsConfig:
    """The repositories whose texts are gathered."""

    data_sets: tuple[LicenceTexts, ...] = ()
    model_names: tuple[str, ...] = ()
    """`org/name` of each model folder that the stage reads, in the same order."""


@stage(version=2)
def licence_texts(config: LicenceTextsConfig, workspace: Workspace, *models: Path) -> dict[str, Any]:
    """Write licences, notices and terms of use, unread, as `<org>--<name>/<file>`; a release passes them on.

    Returns:
        `files`: their number.

    Raises:
        UserError: not one name for each model folder, or a download that fails.
    """
    if len(models) != len(config.model_names):
        wanted = f"{len(config.model_names)} model folders, one for each name"
        raise UserError("contradiction", wanted=wanted, got=str(len(models)), next_step="correct the recipe")
    count = 0
    for texts in config.data_sets:
        folder = _publisher_folder(workspace, texts.name)
        if isinstance(texts.files, HubFiles):
            for file in texts.files.files:
                fetch(texts.files, file, folder / file)
            count += len(texts.files.files)
        else:
            count += _copy(texts.files, folder)
    for name, model in zip(config.model_names, models, strict=True):
        files = [path for path in sorted(model.iterdir()) if path.is_file() and is_licence_text(path.name)]
        count += _copy(files, _publisher_folder(workspace, name))
    return {"files": count}


def _publisher_folder(workspace: Workspace, name: str) -> Path:
    return workspace.folder / name.replace("/", "--")


def _copy(paths: Sequence[Path], folder: Path) -> int:
    for path in paths:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
    return len(paths)
