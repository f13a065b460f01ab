"""All rules for one conversation, in order: filters, exact duplicates, benchmarks, length; then the weights of sources.

Every removed conversation is counted under the name of its rule. Sources are thinned to the ratio of their weights,
never repeated: the scarcest keeps all its rows. The digests of the rows choose which, so that another order of the same
rows gives the same choice: the first half of a digest determines the split, the second half the choice.
"""

import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.duplicates import DIGEST_BYTES, digest
from common.errors import InputError, UserError
from common.rows import Row
from common.tokenizer import Tokenizer
from eval.decontamination import Decontaminator
from instruct.conversations.counts import RuleCounts, characters_of
from instruct.conversations.rules import FiltersConfig, rule_against

DUPLICATE, TOO_LONG, CONTAMINATED = "exact duplicate", "longer than a row", "benchmark item"
TRUNCATED = "conversations cut between turns"
SHORTENED = "answers of which the chat template leaves out a part"
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
        key, quoted = self._digest(row), None
        rule = rule_against(messages, self._filters)
        if rule is None and self._seen_before(key):
            rule = DUPLICATE
        if rule is None and self._decontaminator is not None:
            benchmark = self._decontaminator.find("\n".join(message.get("content") or "" for message in messages))
            if benchmark is not None:
                counts.contamination[benchmark] += 1
                # Not quoted: cards are published, and must not spread benchmark text.
                rule, quoted = CONTAMINATED, f"(holds an item of {benchmark})"
        if rule is not None:
            counts.count_removed(rule, row, quoted=quoted)
            return None
        try:
            num_tokens, num_shortened = self._rendered(row, messages)
            counts.measured_characters += characters_of(row)
            counts.measured_tokens += num_tokens
            if num_tokens > self._sequence_tokens:
                return self._truncated(row, counts, source)
            return _counted(Screened(source, key, row, num_tokens), num_shortened, counts)
        except UserError as error:
            self._template_error = error
            counts.count_bad(_REFUSED, row)
            return None

    def check(self, counts: RuleCounts, max_bad_share: float) -> None:
        """Raise InputError if too many rows are bad, with the message of the chat template that refused some."""
        try:
            counts.rows.check(max_bad_share)
        except InputError as error:
            cause = self._template_error
            if cause is None or _REFUSED not in counts.rows.bad:
                raise
            got = f"{error.got}; the template says: {cause.got}"
            raise InputError(error.code, wanted=error.wanted, got=got, next_step=error.next_step) from cause

    def _truncated(self, row: Row, counts: RuleCounts, source: int) -> Screened | None:
        """The part of a long conversation that fits, if there is one and it is wanted."""

        def fits(messages: Messages) -> bool:
            return self._rendered(row, messages)[0] <= self._sequence_tokens

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
        num_tokens, num_shortened = self._rendered(row, part)
        return _counted(Screened(source, key, shorter, num_tokens), num_shortened, counts)

    def _rendered(self, row: Row, messages: Messages) -> tuple[int, int]:
        """Tokens of the conversation, and its answers of which the template leaves out a part."""
        ids, _, num_shortened = self._tokenizer.render_counted(messages, tools=row.get("tools"))
        return len(ids), num_shortened

    def _digest(self, row: Row) -> bytes:
        content = json.dumps([row["messages"], row.get("tools")], ensure_ascii=False, sort_keys=True)
        return digest(content, seed=self._seed)

    def _seen_before(self, key: bytes) -> bool:
        known = len(self._seen)
        self._seen.add(key)
        return len(self._seen) == known


def _counted(kept: Screened, num_shortened: int, counts: RuleCounts) -> Screened:
    """The conversation, after its answers are counted, and those of which the template leaves out a part."""
    counts.answers += sum(message["role"] == "assistant" for message in kept.row["messages"])
    counts.truncated.update({SHORTENED: num_shortened} if num_shortened else {})
    return kept


def longest_part(messages: Messages, fits: Callable[[Messages], bool]) -> Messages | None:
    """The longest proper prefix of `messages` that ends with a turn of the assistant and fits; None if there is none.

    A cut inside a turn would teach a model to stop in the middle of a sentence. `fits` is monotonic: if a prefix does
    not fit, no longer one does; it is called O(log n) times.
    """
    ends = [place for place, message in enumerate(messages[:-1], start=1) if message["role"] == "assistant"]
    count = bisect_left(ends, True, key=lambda end: not fits(messages[:end]))
    return messages[: ends[count - 1]] if count else None


def rows_of_each(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """The number of rows of each source, out of those `available`: the largest total whose shares hold to a row.

    The rows of each source differ from its exact share of the total by less than one, and the total is their sum.
    """
    exact = [Fraction(weight) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    total = min(math.floor(count / share) for count, share in zip(available, shares, strict=True))
    rows = [math.floor(total * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda place: (rows[place] - total * shares[place], place))
    for place in by_remainder[: total - sum(rows)]:
        rows[place] += 1
    return rows


def thinned(
    rows: Iterable[Screened], names: Sequence[str], weights: Sequence[float], scratch: Path
) -> Iterator[tuple[Screened, bool]]:
    """Yield every row of the sources and whether it is kept, in order, after the last row was read.

    The rows wait in the folder `scratch`; memory holds 22 bytes a row.

    Raises:
        InputError: a source has no row; `names` are for this error.
    """
    waiting = scratch / "mixing.jsonl"
    sources, tokens, digests = array("H"), array("I"), bytearray()
    try:
        with waiting.open("w", encoding="utf-8", newline="\n") as file:
            for one in rows:
                sources.append(one.source)
                tokens.append(one.tokens)
                digests += one.digest
                file.write(json.dumps(one.row, ensure_ascii=False) + "\n")
        kept = _chosen(np.array(sources, dtype=np.int64), digests, names, weights)
        with waiting.open(encoding="utf-8", newline="\n") as file:
            for place, line in enumerate(file):
                key = bytes(digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES])
                yield Screened(sources[place], key, json.loads(line), tokens[place]), bool(kept[place])
    finally:
        waiting.unlink(missing_ok=True)


def _chosen(
    sources: NDArray[np.int64], digests: bytearray, names: Sequence[str], weights: Sequence[float]
) -> NDArray[np.bool_]:
    """Which rows are kept [rows], from the index of the source of each."""
    ranks = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 2)[:, 1]
    available = np.bincount(sources, minlength=len(weights)).tolist()
    for name, count in zip(names, available, strict=True):
        if count == 0:
            wanted = f"conversations of {name}, which has a weight"
            next_step = "leave the source out, or loosen the rules that removed its rows"
            raise InputError("empty", wanted=wanted, got="none that are left", next_step=next_step)
    kept = np.zeros(len(sources), dtype=np.bool_)
    for source, count in enumerate(rows_of_each(available, weights)):
        members = np.flatnonzero(sources == source)
        kept[members[np.argsort(ranks[members], kind="stable")[:count]]] = True
    return kept
