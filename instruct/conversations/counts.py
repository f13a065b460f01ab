"""Counts of one source of conversations by rule, with an example of each: its part of the data card.

Every rule that removes something is counted here under its name; nothing is removed silently.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, zip_longest
from typing import Any

from common.provenance import Terms
from common.rows import Row, RowCounts

SAMPLES_PER_RULE, SAMPLE_CHARACTERS = 3, 200
_NOT_SHOWN = "(not shown: its terms are not known to allow quotes)"

Sample = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class RuleCounts:
    """Counts of one source, filled while its rows are read."""

    terms: Terms
    """Name and terms of the source."""
    revision: str | None = None
    """Commit of the hub, if the source is from there."""
    weight: float | None = None
    """Its share in the recipe, before the weights are scaled to a sum of 1."""
    is_closed: bool = False
    """Whether it is a known set whose terms are not known to allow quotes: the card beside its rows has none either."""
    rows: RowCounts = field(default_factory=RowCounts)
    """Rows read, and the bad ones."""
    removed: Counter[str] = field(default_factory=Counter[str])
    """Removed good rows, by rule."""
    truncated: Counter[str] = field(default_factory=Counter[str])
    """Rows kept in part, by the kind of truncation."""
    answers: int = 0
    """Answers of the conversations that passed every rule, before the sources are thinned."""
    contamination: Counter[str] = field(default_factory=Counter[str])
    """Rows removed because of a benchmark, by its name."""
    answers_chosen_by: Counter[str] = field(default_factory=Counter[str])
    """Rows with several answers, by the field whose scores chose one."""
    joined: dict[str, int] = field(default_factory=dict[str, int])
    """Rows of the joined files, by the content of the file."""
    characters_in: int = 0
    """Characters of every conversation, kept or not."""
    rows_out: int = 0
    characters_out: int = 0
    tokens_out: int = 0
    measured_characters: int = 0
    """Characters of the conversations whose tokens were counted, kept or not."""
    measured_tokens: int = 0
    samples: dict[str, list[Sample]] = field(default_factory=dict[str, list[Sample]])
    """Up to three examples of kept rows and of each rule."""

    def count_bad(self, reason: str, row: Row) -> None:
        """The last row read is not a conversation."""
        self.rows.add_bad(reason)
        self._sample(reason, row)

    def count_removed(self, rule: str, row: Row, *, quoted: str | None = None) -> None:
        """A rule removes a good row; the card shows `quoted` instead of its text, if given."""
        self.removed[rule] += 1
        self._sample(rule, row, quoted)

    def count_kept(self, row: Row, tokens: int) -> None:
        """The row is kept."""
        self.rows_out += 1
        self.characters_out += characters_of(row)
        self.tokens_out += tokens
        self._sample("kept", row)

    def all_removed(self) -> dict[str, int]:
        """Removed rows by rule, bad ones first."""
        return dict(sorted(self.rows.bad.items())) | dict(sorted(self.removed.items()))

    def card(self) -> dict[str, Any]:
        """The entry of the source in the data card."""
        measured = self.measured_characters
        return asdict(self.terms) | {
            "obligations": list(self.terms.obligations),
            "revision": self.revision,
            "weight": self.weight,
            "rows_in": self.rows.rows,
            "characters_in": self.characters_in,
            "removed": self.all_removed(),
            "rows_out": self.rows_out,
            "characters_out": self.characters_out,
            "tokens_out": self.tokens_out,
            "tokens_in_estimate": round(self.characters_in * self.measured_tokens / measured) if measured else None,
            "truncated": dict(self.truncated),
            "answers": self.answers,
        }

    def _sample(self, rule: str, row: Row, quoted: str | None = None) -> None:
        known = self.samples.setdefault(rule, [])
        if len(known) < SAMPLES_PER_RULE:
            text = quoted or (_NOT_SHOWN if self.is_closed else as_text(row))
            known.append({"source": self.terms.name, "id": str(row.get("id", "")), "text": text[:SAMPLE_CHARACTERS]})


def card_of(
    counts: Sequence[RuleCounts], steps: Sequence[Mapping[str, Any]], benchmarks: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """The data card without the tokens of the splits, after the last row: the counts of each source, entries of
    `card_step`, and `Decontaminator.card`.
    """
    return {
        "rows_in": sum(one.rows.rows for one in counts),
        "removed": _sum(one.all_removed() for one in counts),
        "rows_out": sum(one.rows_out for one in counts),
        "sources": [one.card() for one in counts],
        "steps": list(steps),
        "benchmarks": dict(benchmarks),
        "contamination": _sum(one.contamination for one in counts),
        "samples": _samples(counts),
    }


def card_step(name: str, *, off: str | None = None, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An entry of the steps in the data card; `off` is the reason why the step is off."""
    return {"step": name, "on": off is None, "reason": off, "settings": dict(settings or {})}


def characters_of(row: Row) -> int:
    """Characters of all turns of a conversation."""
    return sum(len(message.get("content") or "") for message in row["messages"])


def as_text(row: Mapping[str, Any]) -> str:
    """A row for a reader: its turns if it has any, else its fields."""
    messages = row.get("messages")
    if isinstance(messages, Sequence) and all(isinstance(message, Mapping) for message in messages):
        return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
    return str({name: value for name, value in row.items() if name != "id"})


def _samples(counts: Sequence[RuleCounts]) -> dict[str, list[Sample]]:
    """At most three of each rule, taken from the sources in turn, so that small sources are shown too."""
    for one in counts:  # what the reader itself refused is a sample too
        for place, _, reason in (named.partition(": ") for named in one.rows.first_bad):
            one.samples.setdefault(reason, [{"source": one.terms.name, "id": place, "text": ""}])
    samples: dict[str, list[Sample]] = {"kept": []}
    for rule in (rule for one in counts for rule in sorted(one.samples)):
        in_turn = zip_longest(*(one.samples.get(rule, []) for one in counts))
        samples[rule] = [sample for sample in chain.from_iterable(in_turn) if sample][:SAMPLES_PER_RULE]
    return samples


def _sum(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several counts by name, in the order in which the names first appear."""
    total = Counter[str]()
    for counter in counters:
        total.update(counter)
    return dict(total)
