"""From the report's data cards to what a page shows of them: sources, rules, steps and samples.

Pure functions of the JSON that `report.json` holds. What an older report lacks is empty or a dash.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report import wording

Row = Mapping[str, Any]
_REVISION_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleTable:
    """Rules down, sources across."""

    columns: tuple[str, ...]
    """Names of the sources; none where there is one or the card names none."""
    rows: tuple[tuple[str, int, tuple[int, ...]], ...]
    """(rule, rows of all sources, rows of each column)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPart:
    """One kind of data."""

    name: str
    """`corpus` or `conversations`."""
    card: Row
    sources: tuple[Row, ...]
    total: Mapping[str, float | None]
    """Sums over the sources by field; None where one of them is not counted."""
    removed: RuleTable
    changed: RuleTable
    """What was changed or cut, and kept."""
    steps: tuple[tuple[str, str], ...]
    """(step, whether it is on, with what settings or why not), those that are off first."""
    contamination: tuple[tuple[str, int], ...]
    """(benchmark, documents that held an item of it)."""
    samples: tuple[tuple[str, Sequence[Row]], ...]
    """(what became of them, rows {source, id, text})."""


def data_parts(report: Mapping[str, Any]) -> list[DataPart]:
    """The kinds of data that the build has cards of."""
    return [_part(name, card) for name, card in report["data"].items() if card]


def notes(source: Row) -> str:
    """What stands small below a source's name: its weight, its revision."""
    weight, revision = source.get("weight"), source.get("revision")
    parts = [f"weight {wording.number(weight)}"] if weight is not None else []
    return ", ".join([*parts, *([f"revision {revision[:_REVISION_CHARACTERS]}"] if revision else [])])


def _part(name: str, card: Row) -> DataPart:
    sources: Sequence[Row] = card.get("sources") or []
    counted = ("rows_in", "rows_out", "characters_in", "characters_out", "tokens_out", "tokens_in_estimate")
    removed: Mapping[str, int] = card.get("removed") or {}
    changes = [{**(source.get("changed") or {}), **(source.get("truncated") or {})} for source in sources]
    totals = {rule: sum(change.get(rule, 0) for change in changes) for change in changes for rule in change}
    samples: Mapping[str, Sequence[Row]] = card.get("samples") or {}
    return DataPart(
        name=name,
        card=card,
        sources=tuple(sources),
        total={field: _sum([source.get(field) for source in sources]) for field in counted},
        removed=_rules(removed, sources, [source.get("removed") or {} for source in sources]),
        changed=_rules(totals, sources, changes),
        steps=tuple(_steps(card.get("steps") or [])),
        contamination=tuple((card.get("contamination") or {}).items()),
        samples=tuple((_fate(rule, removed), rows) for rule, rows in samples.items() if rows),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _rules(totals: Mapping[str, int], sources: Sequence[Row], by_source: Sequence[Mapping[str, int]]) -> RuleTable:
    apart = len(sources) > 1
    return RuleTable(
        columns=tuple(source["name"] for source in sources) if apart else (),
        rows=tuple(
            (rule, total, tuple(counts.get(rule, 0) for counts in by_source) if apart else ())
            for rule, total in totals.items()
        ),
    )


def _steps(steps: Sequence[Row]) -> Iterator[tuple[str, str]]:
    for step in sorted(steps, key=lambda step: bool(step.get("on"))):
        if step.get("on"):
            settings: Row = step.get("settings") or {}
            plain = {name: value for name, value in settings.items() if name != "class" and _is_plain(value)}
            told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in plain.items())
            yield step["step"], f"on: {told}" if told else "on"
        else:
            yield step["step"], f"off: {step['reason']}" if step.get("reason") else "off"


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and value != ""


def _fate(rule: str, removed: Mapping[str, int]) -> str:
    return f"Removed: {rule}" if rule in removed else wording.sentence(rule)
