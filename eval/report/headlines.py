"""The six numbers on top of the page, each from a section below it. Pure functions of the report's JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report import wording
from eval.report.view import STAGE_LABELS, TASK_AVERAGE

Report = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """One number that a reader takes away."""

    label: str
    value: str
    unit: str
    note: str


def headlines(report: Report) -> list[Headline]:
    """The numbers on top of the page; one that was not measured says so."""
    return [
        _average_headline(report),
        _held_out_headline(report),
        _kept_headline(report),
        _fidelity_headline(report),
        _size_headline(report),
        _time_headline(report),
    ]


def _by_artifact(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["artifact"]: row for row in rows}


def _pair(report: Report, quantity: str, artifact: str, against: str) -> Row:
    """The row of `paired` of two artifacts, empty where there is none."""
    wanted = (quantity, artifact, against)
    rows = (row for row in report["paired"] if (row["quantity"], row["artifact"], row["against"]) == wanted)
    return next(rows, {})


def _average_headline(report: Report) -> Headline:
    averages = _by_artifact(report["task_average"])
    base, before = (averages.get(name, {}).get("value") for name in ("base", "student_before"))
    note = "not measured" if base is None else f"{wording.percent(before)} % before distillation"
    return Headline(label="Task average of the base", value=wording.percent(base), unit="%", note=note)


def _held_out_headline(report: Report) -> Headline:
    losses = _by_artifact(report["held_out"])
    base, before = (losses.get(name, {}).get("loss") for name in ("base", "student_before"))
    note = "not measured" if base is None else f"{wording.number(before)} before distillation"
    return Headline(label="Held-out loss of the base", value=wording.number(base), unit="nats", note=note)


def _kept_headline(report: Report) -> Headline:
    ratio = _pair(report, TASK_AVERAGE, "chat", "base").get("ratio")
    return Headline(
        label="Kept by the chat model",
        value=wording.percent(ratio, decimals=0),
        unit="%",
        note="not measured" if ratio is None else "of the base\u2019s task average",
    )


def _smallest(report: Report) -> Row | None:
    return min((file for file in report["artifacts"] if file["bytes"]), key=lambda file: file["bytes"], default=None)


def _fidelity_headline(report: Report) -> Headline:
    file = _smallest(report)
    row = _by_artifact(report["fidelity"]).get(file["path"], {}) if file else {}
    agreement, kl = row.get("top1_agreement"), row.get("kl")
    return Headline(
        label="Same next token as the checkpoint",
        value=wording.percent(agreement),
        unit="%",
        note="not measured" if file is None or kl is None else f"{file['encoding']}, KL {wording.number(kl)} nats",
    )


def _size_headline(report: Report) -> Headline:
    file = _smallest(report)
    value, _, unit = wording.size(file["bytes"] if file else None).partition(" ")
    return Headline(
        label="Smallest file", value=value, unit=unit, note=file["encoding"] if file else "none was written"
    )


def _time_headline(report: Report) -> Headline:
    rows = report["built_from"]
    at_least = "at least " if any(row["resumed"] for row in rows) else ""
    stages = f"from {STAGE_LABELS[rows[0]['stage']].lower()} to {STAGE_LABELS[rows[-1]['stage']].lower()}"
    return Headline(
        label="Time to build",
        value=at_least + wording.duration(sum(row["seconds"] for row in rows)),
        unit="",
        note=f"{stages}; memory at the peak {wording.size(max(row['peak_bytes'] for row in rows))}",
    )
