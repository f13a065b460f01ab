"""The stage `report`: what was built, how good it is and what it weighs, computed afterwards from the manifests.

Reads the manifests, metrics and data cards of the build and the evaluation's JSON, and writes `report.json` first, then
`report.html` and `report.md` drawn from it. No stage writes into a report. It measures nothing: what the evaluation
did not measure is null here, with its reason.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.disk import replace_text
from common.store import Workspace, read_manifest, stage
from eval.report import collect
from eval.report.benchmarks import BENCHMARKS
from eval.report.choices import Choice, differences
from eval.report.data_cards import data_cards
from eval.report.render import write_pages

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """Under which terms one part of the build stands."""

    what: str
    """The part: texts, a model, the code."""
    licence: str
    """Name of the licence, or the terms in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """What the report says that no manifest knows."""

    recipe: str | None = None
    """The recipe's name, as in dist/<recipe>/."""
    title: str | None = None
    """The page's heading; None takes what the files' names begin with."""
    licences: tuple[Licence, ...] = ()
    """Terms of everything that went in."""
    choices: tuple[Choice, ...] = ()
    """The recipe's numbers that a reader may ask about, published ones and chosen ones."""


@stage(version=7)
def report(
    config: ReportConfig,
    workspace: Workspace,
    world: Path,
    corpus: Path,
    conversations: Path | None,
    teacher: Path | None,
    student_before: Path | None,
    base: Path | None,
    chat: Path,
    gguf: Path,
    coreml: Path,
    evaluation: Path,
) -> dict[str, Any]:
    """Writes report.json, report.html and report.md.

    The inputs are the artifacts that the report tells of, and `world`, whose manifest names the benchmarks that could
    not be asked.

    Returns:
        `artifacts`, the number of files for phones, and `not_measured`, the number of gaps, each with a reason.

    Raises:
        UserError: an input without a whole manifest, or an evaluation file that is missing or broken.
    """
    folders: dict[str, Path | None] = {
        "corpus": corpus,
        "teacher": teacher,
        "student_before": student_before,
        "base": base,
        "conversations": conversations,
        "chat": chat,
        "gguf": gguf,
        "coreml": coreml,
        "evaluation": evaluation,
    }
    left_out = read_manifest(world)["facts"].get("left_out", {})
    content = assemble(config, folders, machine=workspace.machine.to_json(), left_out=left_out)
    replace_text(workspace.folder / "report.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
    write_pages(content, workspace.folder)
    return {"artifacts": len(content["artifacts"]), "not_measured": len(content["not_measured"])}


def assemble(
    config: ReportConfig,
    folders: Mapping[str, Path | None],
    *,
    machine: Mapping[str, Any],
    left_out: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        config: what no manifest knows.
        folders: artifact folders by name, in the order of the build.
        machine: what this stage computes on, as `Machine.to_json` tells it.
        left_out: why, by the names of published benchmarks that were at hand and could not be asked.
    """
    manifests = collect.load_manifests(folders)
    here, *others = collect.machines(manifests, machine)
    evaluation = folders["evaluation"]
    assert evaluation is not None
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
        "speed": [
            {
                "artifact": file["path"],
                "prefill_tok_per_s": None,
                "decode_tok_per_s": None,
                "reason": "this build measures no speed",
            }
            for file in files
        ],
        "data": data_cards(folders),
        "licences": [{"what": each.what, "licence": each.licence} for each in config.licences],
        "choices": [_choice(choice, manifests) for choice in config.choices],
    }
    content["not_measured"] = [*_unasked(left_out or {}), *_gaps(content, manifests)]
    return collect.without_paths(content)


def _choice(choice: Choice, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A choice, and in `differs` what this build has otherwise: a recipe of another size keeps the choices' text."""
    told = {field: getattr(choice, field) for field in ("what", "value", "published", "source", "reason")}
    return told | {"differs": differences(choice, manifests)}


def _stem(files: Rows) -> str | None:
    """What the GGUF files' names have in common: BaseName-SizeLabel-FineTune, without the encoding."""
    ggufs = [file for file in files if file["format"] == "GGUF"]
    return ggufs[0]["path"].removesuffix(f"-{ggufs[0]['encoding']}.gguf") if ggufs else None


MEASURED = ("tasks", "fidelity", "phones", "samples", "paired", "held_out")
"""Files of the evaluation, `<name>.json` each, and the sections that they become."""


def _unasked(left_out: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The benchmarks that no task asks, as gaps."""
    for task, reason in left_out.items():
        yield {"what": f"scores in {BENCHMARKS[task].name}", "of": [], "reason": reason}


def _gaps(content: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What is null in the report: {what, of: artifacts or phones, reason}, a line a kind of number and reason."""
    skipped = manifests.get("coreml", {}).get("facts", {}).get("skipped")
    if skipped:
        yield {"what": "Core ML package", "of": [], "reason": skipped}
    kinds = (
        ("scores", "tasks", "value", "artifact", "reason"),
        ("fidelity", "fidelity", "kl", "artifact", "reason"),
        ("held-out loss", "held_out", "loss", "artifact", "reason"),
        ("speed", "speed", "decode_tok_per_s", "artifact", "reason"),
        ("memory on a phone, measured", "phones", "measured_bytes", "artifact", "measured_reason"),
        ("whether it fits", "phones", "limit_bytes", "phone", "limit_source"),
    )
    for what, section, field, of, reason in kinds:
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
