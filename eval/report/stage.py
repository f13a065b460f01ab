"""The stage `report`: what was built, how good it is and how large, computed afterwards from the manifests.

Reads manifests, metrics and data cards of the build and the evaluation's JSON. Writes `report.json`, then `report.html`
and `report.md` from it. It measures nothing: what the evaluation did not measure is null, with the reason.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.disk import replace_text
from common.known_benchmarks import BENCHMARKS
from common.store import Workspace, read_manifest, stage
from eval.report import collect
from eval.report.choices import Choice, differences
from eval.report.data import data_cards
from eval.report.render import write_pages

Rows = Sequence[Mapping[str, Any]]
MEASURED = ("tasks", "fidelity", "phones", "samples", "paired", "held_out")
"""Files of the evaluation, `<name>.json`, and the sections of report.json that they become."""
_GAPS = (
    ("scores", "tasks", "value", "artifact", "reason"),
    ("fidelity", "fidelity", "kl", "artifact", "reason"),
    ("held-out loss", "held_out", "loss", "artifact", "reason"),
    ("speed", "speed", "decode_tok_per_s", "artifact", "reason"),
    ("memory on a phone, measured", "phones", "measured_bytes", "artifact", "measured_reason"),
    ("whether it fits", "phones", "limit_bytes", "phone", "limit_source"),
)
"""(what is not measured, section, field that is null then, field of what it is about, field of the reason)."""

_NO_SPEED = {"prefill_tok_per_s": None, "decode_tok_per_s": None, "reason": "this build measures no speed"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """The terms of one part of the build."""

    what: str
    """The part: texts, a model, the code."""
    licence: str
    """Name of the licence, or the terms in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Content of the report that is in no manifest."""

    recipe: str | None = None
    """The recipe's name, as in dist/<recipe>/."""
    title: str | None = None
    """The page's heading; None takes the common beginning of the files' names."""
    licences: tuple[Licence, ...] = ()
    """Terms of all inputs."""
    choices: tuple[Choice, ...] = ()
    """The recipe's numbers that a reader may ask about, published and chosen."""


@stage(version=7)
def report(config: ReportConfig, workspace: Workspace, *inputs: Path | None) -> dict[str, Any]:
    """Writes report.json, report.html and report.md.

    Args:
        config: content that is in no manifest.
        workspace: where to write.
        inputs: artifacts in the order of the build, None for an absent one; a manifest has the artifact's name.
            `corpus`, `chat`, `gguf`, `coreml` and `evaluation` are needed. Of `world` only the benchmarks that could
            not be asked are reported.

    Returns:
        `artifacts`, the number of files for phones, and `not_measured`, the number of gaps, each with a reason.

    Raises:
        UserError: an input without a complete manifest, or an evaluation file that is absent or broken.
    """
    folders = {str(read_manifest(folder)["name"]): folder for folder in inputs if folder is not None}
    left_out = read_manifest(folders.pop("world"))["facts"].get("left_out", {}) if "world" in folders else {}
    content = assemble(config, folders, machine=workspace.machine.to_json(), left_out=left_out)
    replace_text(workspace.folder / "report.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
    write_pages(content, workspace.folder)
    return {"artifacts": len(content["artifacts"]), "not_measured": len(content["not_measured"])}


def assemble(
    config: ReportConfig,
    folders: Mapping[str, Path],
    *,
    machine: Mapping[str, Any],
    left_out: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        config: content that is in no manifest.
        folders: artifact folders by name, in the order of the build.
        machine: what this stage computes on, from `Machine.to_json`.
        left_out: published benchmarks that were there and could not be asked, with the reasons.
    """
    manifests = collect.load_manifests(folders)
    here, *others = collect.machines(manifests, machine)
    evaluation = folders["evaluation"]
    files = collect.artifacts(manifests)
    order = [*collect.TRAINED, *(file["path"] for file in files)]
    measured = {name: _in_order(collect.read_json(evaluation / f"{name}.json"), order) for name in MEASURED}
    content: dict[str, Any] = {
        "recipe": config.recipe,
        "title": config.title or _stem(files) or config.recipe or "A model",
        "machine": {field: value for field, value in here.items() if field != "stages"},
        "other_machines": others,
        "built_from": collect.built_from(folders, manifests),
        "artifacts": files,
        "training": collect.training(manifests),
        "curves": collect.curves(folders),
        **measured,
        "task_average": [row for row in measured["tasks"] if row["task"] == "average"],
        "speed": [{"artifact": file["path"], **_NO_SPEED} for file in files],
        "data": data_cards(folders),
        "licences": [{"what": each.what, "licence": each.licence} for each in config.licences],
        "choices": [_choice(choice, manifests) for choice in config.choices],
    }
    content["not_measured"] = list(_gaps(content, manifests, left_out or {}))
    return collect.without_paths(content)


def _choice(choice: Choice, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A choice, and in `differs` where this build has another value: a recipe of another size keeps the text."""
    fields = ("what", "value", "published", "source", "reason")
    return {field: getattr(choice, field) for field in fields} | {"differs": differences(choice, manifests)}


def _stem(files: Rows) -> str | None:
    """The common beginning of the GGUF files' names: BaseName-SizeLabel-FineTune, without the encoding."""
    ggufs = [file for file in files if file["format"] == "GGUF"]
    return ggufs[0]["path"].removesuffix(f"-{ggufs[0]['encoding']}.gguf") if ggufs else None


def _gaps(
    content: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """What is null in the report: {what, of: artifacts or phones, reason}, one for each kind of number and reason."""
    for task, why in left_out.items():
        yield {"what": f"scores in {BENCHMARKS[task].name}", "of": [], "reason": why}
    skipped = manifests.get("coreml", {}).get("facts", {}).get("skipped")
    if skipped:
        yield {"what": "Core ML package", "of": [], "reason": skipped}
    for what, section, field, of, reason in _GAPS:
        by_reason: dict[str, dict[str, None]] = {}
        for row in content[section]:
            if row[field] is None:
                by_reason.setdefault(row[reason].removeprefix("not measured: "), {})[row[of]] = None
        for why, names in by_reason.items():
            yield {"what": what, "of": list(names), "reason": why}


def _in_order(rows: Any, names: Sequence[str]) -> Any:
    """Rows of an evaluation file with their artifacts in the order of `names`; others come last."""
    place = {name: index for index, name in enumerate(names)}
    return sorted(rows, key=lambda row: place.get(row["artifact"], len(place)))
