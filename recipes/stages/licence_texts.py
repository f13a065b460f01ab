"""The stage `licence_texts`: licences, notices and terms of use, as the publishers of models and data sets wrote them.

They are passed on with a model, a folder for each publisher's repository. It reads none of them.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.sources import Found, HubFiles, fetch
from common.sources.select import is_licence_text
from common.store import Workspace, stage


@dataclass(frozen=True, kw_only=True, slots=True)
class LicenceTexts:
    """The licence texts of one repository."""

    name: str
    """`org/name`."""
    files: Found


@dataclass(frozen=True, kw_only=True, slots=True)
class LicenceTextsConfig:
    """Whose texts to gather, besides those in the model folders that the stage is given."""

    data_sets: tuple[LicenceTexts, ...] = ()
    model_names: tuple[str, ...] = ()
    """`org/name` of each model folder given, in their order."""


@stage(version=2)
def licence_texts(config: LicenceTextsConfig, workspace: Workspace, *models: Path) -> dict[str, Any]:
    """Writes `<org>--<name>/<file>` for every text.

    Returns:
        `files`: how many.

    Raises:
        UserError: models without names, or a download that fails.
    """
    if len(models) != len(config.model_names):
        raise UserError(
            wanted=f"{len(config.model_names)} model folders, one for each name",
            got=str(len(models)),
            next_step="correct the recipe",
        )
    count = 0
    for texts in config.data_sets:
        folder = _folder(workspace.folder, texts.name)
        if isinstance(texts.files, HubFiles):
            for file in texts.files.files:
                fetch(texts.files, file, folder / file)
            count += len(texts.files.files)
        else:
            count += _copy(texts.files, folder)
    for name, model in zip(config.model_names, models, strict=True):
        count += _copy(
            [path for path in sorted(model.iterdir()) if path.is_file() and is_licence_text(path.name)],
            _folder(workspace.folder, name),
        )
    return {"files": count}


def _folder(parent: Path, name: str) -> Path:
    return parent / name.replace("/", "--")


def _copy(paths: "tuple[Path, ...] | list[Path]", folder: Path) -> int:
    for path in paths:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
    return len(paths)
