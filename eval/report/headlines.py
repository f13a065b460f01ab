"""The six numbers at the top of the page, each from a section below it. Pure functions of the report's JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report import wording
from eval.report.view import TASK_AVERAGE, label

Report = Mapping[str, Any]
Row = Mapping[str, Any]
_NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """One main result."""

    label: str
    value: str
    unit: str
    note: str


def headlines(report: Report) -> list[Headline]:
    """The numbers at the top of the page; one that was not measured says so."""
    files = [file for file in report["artifacts"] if file["bytes"]]
    smallest = min(files, key=lambda file: file["bytes"], default=None)
    return [
        _of_the_base("Task average of the base", "%", report["task_average"], "value", wording.percent),
        _of_the_base("Held-out loss of the base", "nats", report["held_out"], "loss", wording.number),
        _kept(report["paired"]),
        _fidelity(report["fidelity"], smallest),
        _size(smallest),
        _time(report),
    ]


def _of_the_base(
    name: str, unit: str, rows: Sequence[Row], field: str, write: Callable[[float | None], str]
) -> Headline:
    """A number of the base, with that of the student before distillation."""
    by_artifact = {row["artifact"]: row.get(field) for row in rows}
    base, before = by_artifact.get("base"), by_artifact.get("student_before")
    note = _NOT_MEASURED if base is None else f"{write(before)} {unit} before distillation"
    return Headline(label=name, value=write(base), unit=unit, note=note)


def _kept(paired: Sequence[Row]) -> Headline:
    pair = (TASK_AVERAGE, "chat", "base")
    rows = (row for row in paired if (row["quantity"], row["artifact"], row["against"]) == pair)
    ratio = next(rows, {}).get("ratio")
    return Headline(
        label="Kept by the chat model",
        value=wording.percent(ratio, decimals=0),
        unit="%",
        note=_NOT_MEASURED if ratio is None else "of the base\u2019s task average",
    )


def _fidelity(rows: Sequence[Row], file: Row | None) -> Headline:
    row: Row = next((row for row in rows if file and row["artifact"] == file["path"]), {})
    note = _NOT_MEASURED
    if file and row.get("kl") is not None:
        note = f"{file['encoding']}, KL {wording.number(row['kl'])} nats"
    return Headline(
        label="Same next token as the checkpoint",
        value=wording.percent(row.get("top1_agreement")),
        unit="%",
        note=note,
    )


def _size(file: Row | None) -> Headline:
    value, _, unit = wording.size(file["bytes"] if file else None).partition(" ")
    return Headline(label="Smallest file", value=value, unit=unit, note=file["encoding"] if file else "no file written")


def _time(report: Report) -> Headline:
    rows = report["built_from"]
    at_least = "at least " if any(row["resumed"] for row in rows) else ""
    first, last = (label(report, rows[index]["stage"]).lower() for index in (0, -1))
    return Headline(
        label="Time to build",
        value=at_least + wording.duration(sum(row["seconds"] for row in rows)),
        unit="",
        note=f"{first} to {last}; peak memory {wording.size(max(row['peak_bytes'] for row in rows))}",
    )
