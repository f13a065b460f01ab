"""All rules for one conversation, in order: filters, exact duplicates, benchmarks, length.

Every removed conversation is counted under the name of its rule. Independent of files and sources.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.duplicates import digest
from common.errors import InputError, UserError
from common.rows import Row
from common.tokenizer import Tokenizer
from eval.decontamination import Decontaminator
from instruct.conversations.counts import RuleCounts, characters_of
from instruct.conversations.rules import FiltersConfig, rule_against

DUPLICATE, TOO_LONG, CONTAMINATED = "exact duplicate", "longer than a row", "benchmark item"
TRUNCATED = "conversations cut between turns"
_REFUSED = "refused by the chat template"

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Screened:
    """A conversation that passed every rule."""

    source: int
    """Index of its source."""
    digest: bytes
    row: Row
    tokens: int


class Screener:
    """The rules, and the digests of the conversations that they have seen.

    A conversation, rendered by `tokenizer`, can have `sequence_tokens`; `truncate` keeps the part of a longer one that
    fits. Without a `decontaminator` no benchmarks are searched. `seed` is that of the digests.
    """

    def __init__(
        self,
        filters: FiltersConfig,
        tokenizer: Tokenizer,
        *,
        sequence_tokens: int,
        truncate: bool,
        decontaminator: Decontaminator | None,
        seed: int,
    ) -> None:
        self._filters, self._tokenizer, self._decontaminator = filters, tokenizer, decontaminator
        self._sequence_tokens, self._truncate, self._seed = sequence_tokens, truncate, seed
        self._seen: set[bytes] = set()
        self._template_error: UserError | None = None

    def __call__(self, row: Row, counts: RuleCounts, source: int) -> Screened | None:
        """The conversation, or the part of it that is kept; None if a rule, which is counted, removes it."""
        counts.characters_in += characters_of(row)
        messages: Messages = row["messages"]
        key = self._digest(row)
        rule = rule_against(messages, self._filters)
        if rule is None and self._seen_before(key):
            rule = DUPLICATE
        if rule is None and self._decontaminator is not None:
            benchmark = self._decontaminator.find("\n".join(message.get("content") or "" for message in messages))
            if benchmark is not None:
                counts.contamination[benchmark] += 1
                # Not quoted: cards are published, and must not spread benchmark text.
                counts.count_removed(CONTAMINATED, row, quoted=f"(holds an item of {benchmark})")
                return None
        if rule is not None:
            counts.count_removed(rule, row)
            return None
        try:
            tokens = self._num_tokens(row, messages)
            counts.count_tokens(row, tokens)
            if tokens <= self._sequence_tokens:
                return Screened(source, key, row, tokens)
            return self._truncated(row, counts, source)
        except UserError as error:
            self._template_error = error
            counts.count_bad(_REFUSED, row)
            return None

    def check(self, counts: RuleCounts, max_bad_share: float) -> None:
        """Raise InputError if too many rows are bad, with the message of the chat template that refused some."""
        try:
            counts.rows.check(max_bad_share)
        except InputError as error:
            if self._template_error is None or _REFUSED not in counts.rows.bad:
                raise
            got = f"{error.got}; the template says: {self._template_error.got}"
            raise InputError(
                error.code, wanted=error.wanted, got=got, next_step=error.next_step
            ) from self._template_error

    def _truncated(self, row: Row, counts: RuleCounts, source: int) -> Screened | None:
        """The part of a long conversation that fits, if there is one and it is wanted."""

        def fits(messages: Messages) -> bool:
            return self._num_tokens(row, messages) <= self._sequence_tokens

        part = longest_part(row["messages"], fits) if self._truncate else None
        if part is None:
            counts.count_removed(TOO_LONG, row)
            return None
        shorter = row | {"messages": part}
        key = self._digest(shorter)
        if self._seen_before(key):
            counts.count_removed(DUPLICATE, shorter)
            return None
        counts.truncated[TRUNCATED] += 1
        return Screened(source, key, shorter, self._num_tokens(row, part))

    def _num_tokens(self, row: Row, messages: Messages) -> int:
        return len(self._tokenizer.render(messages, tools=row.get("tools"))[0])

    def _digest(self, row: Row) -> bytes:
        content = json.dumps([row["messages"], row.get("tools")], ensure_ascii=False, sort_keys=True)
        return digest(content, seed=self._seed)

    def _seen_before(self, key: bytes) -> bool:
        known = len(self._seen)
        self._seen.add(key)
        return len(self._seen) == known


def longest_part(messages: Messages, fits: Callable[[Messages], bool]) -> Messages | None:
    """The longest proper prefix of `messages` that ends with a turn of the assistant and fits; None if there is none.

    A cut inside a turn would teach a model to stop in the middle of a sentence.

    Args:
        messages: a conversation that does not fit.
        fits: monotonic: if a prefix does not fit, no longer one does; called O(log n) times.
    """
    ends = [place for place, message in enumerate(messages, start=1) if message["role"] == "assistant"]
    ends = [end for end in ends if end < len(messages)]
    count = bisect_left(ends, True, key=lambda end: not fits(messages[:end]))
    return messages[: ends[count - 1]] if count else None
