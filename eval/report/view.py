"""From report.json to what a page shows: headlines, score table, phones, samples, comparisons; for all templates.

Pure functions of the content of report.json, from which the page can be drawn again.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.known_benchmarks import BENCHMARKS
from eval.report import wording

Report = Mapping[str, Any]
Row = Mapping[str, Any]

STAGE_LABELS = {
    "world": "World",
    "tokenizer": "Tokenizer",
    "corpus": "Corpus",
    "teacher": "Teacher",
    "student_before": "Student before",
    "base": "Base",
    "conversations": "Conversations",
    "chat": "Chat",
    "gguf": "GGUF files",
    "coreml": "Core ML package",
    "evaluation": "Evaluation",
}
AVERAGE = "average"
"""The evaluation's name for the row of the task average."""
TASK_AVERAGE = "task average"
"""The paired comparisons' name for it."""
TASK_LABELS = {task: benchmark.name for task, benchmark in BENCHMARKS.items()}
"""Published benchmarks by the names of their tasks."""
METRIC_LABELS = {"acc": "likeliest option", "exact_match": "exact match"}
METHOD_LABELS = {"taid": "TAID", "forward_kl": "forward KL", "cross_entropy": "cross-entropy", "instruct": "tuning"}
_NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTable:
    """Tasks down, artifacts across."""

    columns: tuple[str, ...]
    """Artifacts that were measured on at least one task."""
    rows: tuple[Mapping[str, Any], ...]
    """{label, metric, is_group, chance, cells: row of `tasks` by artifact}."""
    average: Mapping[str, Row]
    """Row of `task_average` by artifact."""
    stopped: bool
    """Whether the share of answers that ended by themselves is known of any artifact."""
    unmeasured: tuple[tuple[str, str], ...]
    """(names of artifacts without a score, reason)."""
    fewer: str | None
    """A note on the artifacts that were asked fewer questions than others; None where there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhoneTable:
    """Phones down, files across."""

    columns: tuple[str, ...]
    context_tokens: Mapping[str, int | None]
    """Context of the predictions by artifact; None of one that could not be read."""
    rows: tuple[Mapping[str, Any], ...]
    """{phone, limit_bytes, limit_measured, cells: row of `phones` by artifact}."""
    sources: tuple[tuple[str, str], ...]
    """(part of a prediction, its source)."""


@dataclass(frozen=True, slots=True)
class Headline:
    """One main result, at the top of the page."""

    label: str
    value: str
    unit: str
    note: str


def label(report: Report, artifact: str) -> str:
    """A short name: a stage's label (its own name where a recipe added it), or a file's encoding."""
    file = next((file for file in report["artifacts"] if file["path"] == artifact), None)
    if file is None:
        return STAGE_LABELS.get(artifact, artifact)
    return file["encoding"] if file["format"] == "GGUF" else file["format"]


def stage(report: Report, name: str) -> Row:
    """The row of `built_from` of one stage, empty where the recipe has none."""
    return next((row for row in report["built_from"] if row["stage"] == name), {})


def lead(report: Report) -> str:
    """What was built and from what, in one sentence."""
    student = wording.short_count(stage(report, "chat").get("parameters"))
    teacher = wording.short_count(stage(report, "teacher").get("parameters"))
    method = next((row["method"] for row in report["training"] if row["stage"] == "base"), None)
    files = [file["format"] for file in report["artifacts"]]
    num_ggufs, num_packages = files.count("GGUF"), files.count("Core ML")
    if not stage(report, "teacher"):
        return f"A model of {student} parameters, exported and measured; not trained here."
    made = [f"{num_ggufs} GGUF file{'s' * (num_ggufs != 1)}"] * (num_ggufs > 0) + ["a Core ML package"] * num_packages
    return (
        f"A Japanese chat model of {student} parameters, distilled from a teacher of {teacher} "
        f"with {METHOD_LABELS.get(method or '', method or 'an unnamed method')}, tuned on conversations"
        + (f" and written as {' and '.join(made)}." if made else ".")
    )


def warnings(report: Report) -> list[tuple[str, str]]:
    """(label of a stage, warning) of all data and training stages."""
    cards = [(name, card) for name, card in (report.get("data") or {}).items() if card]
    rows = [*cards, *((row["stage"], row) for row in report["training"])]
    return [(label(report, name), each) for name, row in rows for each in row.get("warnings") or ()]


def drawn(report: Report) -> list[str]:
    """A sentence for each training stage that read several sources: what it drew of each, beside its weight."""
    sentences: list[str] = []
    for row in report["training"]:
        parts = [
            f"{wording.percent(one['share'])} % {one['source']}"
            + ("" if one["weight"] is None else f" (weight {wording.percent(one['weight'])} %)")
            for one in row.get("drawn") or ()
        ]
        if len(parts) > 1:
            sentences.append(f"Read by {label(report, row['stage'])}, in parts of all characters: {', '.join(parts)}.")
    return sentences


def headlines(report: Report) -> list[Headline]:
    """The six numbers at the top of the page, each from a section below it; one that was not measured says so."""
    files = [file for file in report["artifacts"] if file["bytes"]]
    smallest: Row = min(files, key=lambda file: file["bytes"], default={})
    size, _, size_unit = wording.size(smallest.get("bytes")).partition(" ")
    near: Row = next((row for row in report["fidelity"] if row["artifact"] == smallest.get("path")), {})
    is_near = near.get("kl") is not None
    pair = (TASK_AVERAGE, "chat", "base")
    paired = (row for row in report["paired"] if (row["quantity"], row["artifact"], row["against"]) == pair)
    kept = next(paired, {}).get("ratio")
    rows = report["built_from"]
    seconds = wording.duration(sum(row["seconds"] for row in rows))
    first, last = (label(report, rows[index]["stage"]).lower() for index in (0, -1))
    return [
        _of_the_base("Task average of the base", "%", report["task_average"], "value", wording.percent),
        _of_the_base("Held-out loss of the base", "nats", report["held_out"], "loss", wording.number),
        Headline(
            "Kept by the chat model",
            wording.percent(kept, decimals=0),
            "%",
            _NOT_MEASURED if kept is None else "of the base\u2019s task average",
        ),
        Headline(
            "Same next token as the checkpoint",
            wording.percent(near.get("top1_agreement")),
            "%",
            f"{smallest['encoding']}, KL {wording.number(near['kl'])} nats" if is_near else _NOT_MEASURED,
        ),
        Headline("Smallest file", size, size_unit, smallest.get("encoding", "no file written")),
        Headline(
            "Time to build",
            f"at least {seconds}" if any(row["resumed"] for row in rows) else seconds,
            "",
            f"{first} to {last}; peak memory {wording.size(max(row['peak_bytes'] for row in rows))}",
        ),
    ]


def _of_the_base(
    name: str, unit: str, rows: Sequence[Row], field: str, write: Callable[[float | None], str]
) -> Headline:
    """A number of the base, with that of the student before distillation."""
    values = {row["artifact"]: row.get(field) for row in rows}
    base, before = values.get("base"), values.get("student_before")
    note = _NOT_MEASURED if base is None else f"{write(before)} {unit} before distillation"
    return Headline(name, write(base), unit, note)


def differing(choice: Row) -> str:
    """Where this build differs from a choice: `base.steps 2, base.rows_per_step 4`."""
    return ", ".join(f"{each['field']} {each['built']}" for each in choice.get("differs") or ())


def score_table(report: Report) -> ScoreTable:
    """Scores of all artifacts, tasks in the order of the evaluation, groups below their task."""
    tasks = report["tasks"]
    order = list(dict.fromkeys(row["artifact"] for row in tasks))
    measured = [name for name in order if any(row["artifact"] == name and row["value"] is not None for row in tasks)]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in tasks:
        if row["task"] == AVERAGE or row["value"] is None:
            continue
        task, _, group = row["task"].partition("/")
        line = rows.setdefault(
            (row["task"], row["metric"]),
            {
                "label": _words(group) if group else TASK_LABELS.get(task, _words(task)),
                "metric": METRIC_LABELS.get(row["metric"], row["metric"]),
                "is_group": bool(group),
                "chance": None,
                "cells": {},
            },
        )
        line["cells"][row["artifact"]] = row
        line["chance"] = row["chance"] if line["chance"] is None else line["chance"]
    unmeasured: dict[str, list[str]] = {}
    for name in order:
        if name not in measured:
            reason = next(row.get("reason") for row in tasks if row["artifact"] == name) or _NOT_MEASURED
            unmeasured.setdefault(reason, []).append(label(report, name))
    average = {row["artifact"]: row for row in report["task_average"]}
    return ScoreTable(
        columns=tuple(measured),
        rows=tuple(rows.values()),
        average=average,
        stopped=any(row.get("stopped_share") is not None for row in report["task_average"]),
        unmeasured=tuple((", ".join(names), reason) for reason, names in unmeasured.items()),
        fewer=_fewer({label(report, name): average[name]["n"] for name in measured if average.get(name, {}).get("n")}),
    )


def _fewer(items: Mapping[str, int]) -> str | None:
    """A note where artifacts, by name, answered different numbers of questions."""
    most = max(items.values(), default=0)
    few = ", ".join(f"{name} ({count:,})" for name, count in items.items() if count < most)
    why = "The questions alone may explain a difference between these scores and the others."
    return f"Asked fewer questions than the {most:,} of the others: {few}. {why}" if few else None


def _words(name: str) -> str:
    """A task's or a group's name as words; translation directions stay codes."""
    words = name.replace("_", " ")
    return words if re.fullmatch("[a-z]{2}-[a-z]{2}", words) else wording.sentence(words)


def phone_table(report: Report) -> PhoneTable:
    """Predictions by phone and file; a phone's limit is the one that applies to any app."""
    rows: dict[str, dict[str, Any]] = {}
    for row in report["phones"]:
        fields = ("phone", "limit_bytes", "limit_measured")
        line = rows.setdefault(row["phone"], {**{field: row[field] for field in fields}, "cells": {}})
        line["cells"][row["artifact"]] = row
    return PhoneTable(
        columns=tuple(dict.fromkeys(row["artifact"] for row in report["phones"])),
        context_tokens={row["artifact"]: row["context_tokens"] for row in report["phones"]},
        rows=tuple(rows.values()),
        sources=tuple(_phone_sources(report)),
    )


def _phone_sources(report: Report) -> Iterator[tuple[str, str]]:
    """(part of a prediction, its source), with the format where formats differ."""
    formats = {file["path"]: file["format"] for file in report["artifacts"]}
    by_part: dict[str, dict[str, str]] = {}
    for row in report["phones"]:
        for part, source in row["sources"].items():
            by_part.setdefault(part, {}).setdefault(source, formats.get(row["artifact"], row["artifact"]))
    for part, sources in by_part.items():
        for source, format_ in sources.items():
            yield part.replace("_", " ") + f" in {format_}" * (len(sources) > 1), source


def samples(report: Report) -> list[dict[str, Any]]:
    """Answers grouped by conversation: {messages, answers: rows of `samples`}."""
    grouped: dict[str, dict[str, Any]] = {}
    for row in report["samples"]:
        sample = grouped.setdefault(repr(row["messages"]), {"messages": row["messages"], "answers": []})
        sample["answers"].append(row)
    return list(grouped.values())


def comparisons(report: Report) -> list[dict[str, str]]:
    """Paired comparisons as text: {quantity, of, against, value, interval}; a ratio is a separate line."""
    lines: list[dict[str, str]] = []
    for row in report["paired"]:
        quantity = _words(row["quantity"])
        scale, decimals, unit = (100, 1, "points") if row["quantity"] == TASK_AVERAGE else (1, 3, "nats")
        difference, low, high = (
            wording.signed(scale * value, decimals=decimals) for value in (row["difference"], *row["interval"])
        )
        names = {"of": label(report, row["artifact"]), "against": label(report, row["against"])}
        value, interval = f"{difference} {unit}", f"{low} to {high}"
        lines.append({"quantity": quantity, **names, "value": value, "interval": interval})
        if row.get("ratio") is not None:
            value, interval = f"{wording.percent(row['ratio'])} %", wording.percent_interval(row["ratio_interval"])
            lines.append({"quantity": f"{quantity}, kept", **names, "value": value, "interval": interval})
    return lines
