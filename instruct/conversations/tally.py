"""What became of a source's conversations, with an example of each decision: the source's part of the data card.

Every rule that removes something books it here and gives it a name; nothing is left out silently. It decides nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from common.provenance import Terms
from common.rows import Row, RowCounts
from instruct.conversations.checking import characters_of

SAMPLES_PER_RULE = 3
SAMPLE_CHARACTERS = 200

Sample = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts of one source, filled while its rows are read."""

    terms: Terms
    """What the source is called and under which terms it stands."""
    revision: str | None = None
    """Commit of the hub, where the source came from there."""
    weight: float | None = None
    """Share that the recipe gives it, before the weights are brought to a sum of 1."""
    quotable: bool = True
    """Whether the card may quote its conversations."""
    counts: RowCounts = field(default_factory=RowCounts)
    """Rows read, and the bad ones."""
    removed: Counter[str] = field(default_factory=Counter[str])
    """Good rows left out, by rule."""
    truncated: Counter[str] = field(default_factory=Counter[str])
    """Rows kept in part, by what was cut."""
    contamination: Counter[str] = field(default_factory=Counter[str])
    """Rows left out because of a benchmark, by its name."""
    answers_chosen_by: Counter[str] = field(default_factory=Counter[str])
    """Rows with several answers, by the field whose scores chose one."""
    joined: dict[str, int] = field(default_factory=dict[str, int])
    """Rows of the files that were joined, by what the files hold."""
    characters_in: int = 0
    """Of every row that is a conversation, kept or not."""
    rows_out: int = 0
    characters_out: int = 0
    tokens_out: int = 0
    measured_characters: int = 0
    """Of the rows whose tokens were counted, kept or not."""
    measured_tokens: int = 0
    samples: dict[str, list[Sample]] = field(default_factory=dict[str, list[Sample]])
    """Up to three examples of what is kept and of each rule."""

    def bad(self, reason: str, row: Row) -> None:
        """The row that was read last is no conversation."""
        self.counts.add_bad(reason)
        self._sample(reason, row)

    def leave_out(self, rule: str, row: Row, *, quoted: str | None = None) -> None:
        """The row is a good one and not wanted; the card shows `quoted` instead of its text, where that is given."""
        self.removed[rule] += 1
        self._sample(rule, row, quoted)

    def measure(self, row: Row, tokens: int) -> None:
        """The row has this many tokens."""
        self.measured_characters += characters_of(row["messages"])
        self.measured_tokens += tokens

    def keep(self, row: Row, tokens: int) -> None:
        """The row stays."""
        self.rows_out += 1
        self.characters_out += characters_of(row["messages"])
        self.tokens_out += tokens
        self._sample("kept", row)

    def finish(self) -> None:
        """No row of the source is left to read: what the reader refused before anyone saw it becomes a sample too."""
        for named in self.counts.first_bad:
            place, _, reason = named.partition(": ")
            self.samples.setdefault(reason, [{"source": self.terms.name, "id": place, "text": ""}])

    def all_removed(self) -> dict[str, int]:
        """Rows left out by rule, bad ones first."""
        return dict(sorted(self.counts.bad.items())) | dict(sorted(self.removed.items()))

    def card(self) -> dict[str, Any]:
        """The source's entry of the data card."""
        measured = self.measured_characters
        estimate = round(self.characters_in * self.measured_tokens / measured) if measured else None
        return asdict(self.terms) | {
            "obligations": list(self.terms.obligations),
            "revision": self.revision,
            "weight": self.weight,
            "rows_in": self.counts.rows,
            "characters_in": self.characters_in,
            "removed": self.all_removed(),
            "rows_out": self.rows_out,
            "characters_out": self.characters_out,
            "tokens_out": self.tokens_out,
            "tokens_in_estimate": estimate,
            "truncated": dict(self.truncated),
        }

    def _sample(self, rule: str, row: Row, quoted: str | None = None) -> None:
        known = self.samples.setdefault(rule, [])
        if len(known) < SAMPLES_PER_RULE:
            text = quoted or (as_text(row) if self.quotable else "(its terms forbid to pass it on)")
            known.append({"source": self.terms.name, "id": str(row.get("id", "")), "text": text[:SAMPLE_CHARACTERS]})


def as_text(row: Mapping[str, Any]) -> str:
    """A row as a reader sees it: the turns where they can be told, else what the row holds."""
    messages = row.get("messages")
    if isinstance(messages, Sequence) and all(isinstance(message, Mapping) for message in messages):
        return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
    return str({name: value for name, value in row.items() if name != "id"})


def gathered_samples(tallies: Sequence[Tally]) -> dict[str, list[Sample]]:
    """At most three of each rule, the sources in turn, so that a small one is seen beside a large one."""
    rules = dict.fromkeys(["kept", *(rule for tally in tallies for rule in sorted(tally.samples))])
    gathered: dict[str, list[Sample]] = {}
    for rule in rules:
        of_sources = [tally.samples.get(rule, []) for tally in tallies]
        in_turn = [
            samples[place] for place in range(SAMPLES_PER_RULE) for samples in of_sources if place < len(samples)
        ]
        gathered[rule] = in_turn[:SAMPLES_PER_RULE]
    return gathered


def total(counters: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several counts by name, in the order in which the names first appear."""
    result: dict[str, int] = {}
    for counter in counters:
        for name, count in counter.items():
            result[name] = result.get(name, 0) + count
    return result
