"""The data cards of a build: what came in, what was removed and why, under which terms.

`data_cards` reads them for the report's JSON: only the fields that are named here, with absolute paths cut to their
last part; terms and the texts of samples stay as they are. A report is published: it quotes rows only of sources whose
terms say so (`Terms.quotable`). A card of an older build, without sources, has empty lists.
`data_parts` turns that JSON into what a page shows; what an older report lacks is empty or a dash.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.known_sets import known_set
from common.provenance import MODEL, DataSource
from eval.report import wording
from eval.report.collect import cut_paths, read_json

Row = Mapping[str, Any]
Counts = Mapping[str, int]
_COUNTS = (
    *("rows_in", "characters_in", "removed", "changed", "truncated", "rows_out", "characters_out"),
    *("tokens_out", "tokens_in_estimate"),
)
_TERMS = ("licence", "attribution", "obligations", "quotable")
_SHARED_BY = ("tokens_out", "characters_out", "rows_out")
"""Counts that a source's share may refer to: the first that is known of every source."""
_REVISION_CHARACTERS = 12


def data_cards(folders: Mapping[str, Path]) -> dict[str, Any]:
    """The cards of the corpus and the conversations, null where one is absent.

    Each is {rows_in, removed, rows_out, splits, tokens, warnings, sources, steps, contamination, samples, not_quoted};
    the last six may be empty. A source has its terms, its counts and `share`, its part of the tokens that were kept (of
    the characters or the rows where tokens are not counted), 0 to 1. `samples` are rows of the sources whose terms
    allow to quote them, and `not_quoted` names the sources whose samples stay in the build folder.
    """
    paths = {name: folders[name] / "data_card.json" for name in ("corpus", "conversations") if name in folders}
    there = {name: _card(read_json(path)) for name, path in paths.items() if path.is_file()}
    return {"corpus": None, "conversations": None} | there


def why_no_answers(sources: Iterable[DataSource], *, private_questions: bool) -> str | None:
    """Why a published report shows no answers of a model that learnt from these sources; None where it may show them.

    A small model can repeat a text that it learnt. Its answers are shown where none of its texts and conversations is
    the user's own: all are known sets, which others have published, or sources that may be quoted. `private_questions`:
    the answers are to questions that may not be quoted.
    """
    learnt = (source for source in sources if source.stage != MODEL)
    private = [source.name for source in learnt if not (source.quotable or known_set(source.name))]
    named = [*dict.fromkeys(private), *(["the questions"] if private_questions else [])]
    if not named:
        return None
    return f"a model can repeat what it learnt, and no terms say that a report may quote {', '.join(named)}"


def quoted_rows(report: Row) -> dict[str, int]:
    """Rows that a report quotes, by the name of their source."""
    cards: list[Row] = [card for card in (report.get("data") or {}).values() if card]
    samples = [sample for card in cards for rows in (card.get("samples") or {}).values() for sample in rows]
    return dict(Counter(_source_of(sample) for sample in samples if sample.get("text")))


def _source_of(sample: Row) -> str:
    return str(sample.get("source") or "a source without a name")


def _card(card: Row) -> dict[str, Any]:
    sources: Sequence[Row] = card.get("sources") or []
    quotable = {source.get("name") for source in sources if source.get("quotable") is True}
    samples: Mapping[str, Sequence[Row]] = card.get("samples") or {}
    quoted = {rule: [sample for sample in rows if sample.get("source") in quotable] for rule, rows in samples.items()}
    sampled = {_source_of(sample) for rows in samples.values() for sample in rows}
    return {
        **_cut(card, ("rows_in", "removed", "rows_out", "splits", "tokens")),
        "warnings": cut_paths(card.get("warnings") or []),
        "sources": [
            _cut(source, ("name", "revision", "weight", *_COUNTS))
            | {field: source.get(field) for field in _TERMS}
            | {"url": _web_address(source.get("url")), "share": share}
            for source, share in zip(sources, _shares(sources), strict=True)
        ],
        "steps": [_cut(step, ("step", "on", "reason", "settings")) for step in card.get("steps") or []],
        "contamination": cut_paths(card.get("contamination") or {}),
        "samples": {
            cut_paths(rule): [_cut(sample, ("source", "id")) | {"text": sample.get("text")} for sample in rows]
            for rule, rows in quoted.items()
            if rows
        },
        "not_quoted": cut_paths(sorted(sampled - quotable)),
    }


def _cut(row: Row, fields: Iterable[str]) -> dict[str, Any]:
    return {field: cut_paths(row.get(field)) for field in fields}


def _shares(sources: Sequence[Row]) -> list[float | None]:
    for field in _SHARED_BY:
        total = _sum([source.get(field) for source in sources])
        if total:
            return [round(source[field] / total, 6) for source in sources]
    return [None] * len(sources)


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum, None where a value is unknown or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _web_address(url: Any) -> str | None:
    return url if isinstance(url, str) and url.startswith(("https://", "http://")) else None


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
    """Rows that were changed or cut, and kept."""
    steps: tuple[tuple[str, str], ...]
    """(step, whether it is on, with its settings or the reason), those that are off first."""
    contamination: tuple[tuple[str, int], ...]
    """(benchmark, documents that held an item of it)."""
    samples: tuple[tuple[str, Sequence[Row]], ...]
    """(what happened to them, rows {source, id, text})."""


def data_parts(report: Row) -> list[DataPart]:
    """The kinds of data that the build has cards of."""
    return [_part(name, card) for name, card in report["data"].items() if card]


def notes(source: Row) -> str:
    """The small print below a source's name: its weight, its revision."""
    weight, revision = source.get("weight"), source.get("revision")
    parts = [f"weight {wording.number(weight)}"] if weight is not None else []
    return ", ".join(parts + ([f"revision {revision[:_REVISION_CHARACTERS]}"] if revision else []))


def _part(name: str, card: Row) -> DataPart:
    sources: Sequence[Row] = card.get("sources") or []
    counted = ("rows_in", "rows_out", "characters_in", "characters_out", "tokens_out", "tokens_in_estimate")
    removed: Counts = card.get("removed") or {}
    changes = [{**(source.get("changed") or {}), **(source.get("truncated") or {})} for source in sources]
    changed = {rule: sum(change.get(rule, 0) for change in changes) for change in changes for rule in change}
    return DataPart(
        name=name,
        card=card,
        sources=tuple(sources),
        total={field: _sum([source.get(field) for source in sources]) for field in counted},
        removed=_rules(removed, sources, [source.get("removed") or {} for source in sources]),
        changed=_rules(changed, sources, changes),
        steps=tuple(_steps(card.get("steps") or [])),
        contamination=tuple((card.get("contamination") or {}).items()),
        samples=tuple(
            (f"Removed: {rule}" if rule in removed else wording.sentence(rule), texts)
            for rule, texts in (card.get("samples") or {}).items()
            if texts
        ),
    )


def _rules(totals: Counts, sources: Sequence[Row], by_source: Sequence[Counts]) -> RuleTable:
    if len(sources) < 2:
        sources, by_source = (), ()
    return RuleTable(
        columns=tuple(source["name"] for source in sources),
        rows=tuple((rule, total, tuple(counts.get(rule, 0) for counts in by_source)) for rule, total in totals.items()),
    )


def _steps(steps: Sequence[Row]) -> Iterator[tuple[str, str]]:
    for step in sorted(steps, key=lambda step: bool(step.get("on"))):
        detail = step.get("reason")
        if step.get("on"):
            settings: Row = step.get("settings") or {}
            plain = [each for each in settings.items() if each[0] != "class" and isinstance(each[1], str | int | float)]
            detail = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in plain if value != "")
        yield step["step"], ("on" if step.get("on") else "off") + (f": {detail}" if detail else "")
