"""How items are laid out for a runtime: which share a context, which go together, where an answer ends.

Pure functions of ids and texts; it knows no model and no library.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import UserError
from eval.runtimes import Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One token whose probability is asked for."""

    pair: int
    """Index of the pair that it belongs to."""
    position: int
    """Index in the row of the token that predicts it."""
    id: int
    """The token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """A context followed by all continuations that were asked about it, each with the positions it has by itself."""

    ids: list[int]
    positions: list[int]
    parts: list[int]
    """0 in the context, 1.. in the continuations."""
    targets: list[Target]

    @property
    def longest(self) -> int:
        """Tokens of the context with its longest continuation."""
        return max(self.positions) + 1


def score_rows(pairs: Sequence[Pair]) -> list[ScoreRow]:
    """One row for each distinct context, in the order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        assert len(context) > 0 and len(continuation) > 0, "score needs a context and a continuation"
        groups.setdefault(tuple(context), []).append(index)
    return [_score_row(context, [(index, pairs[index][1]) for index in members]) for context, members in groups.items()]


def _score_row(context: Sequence[int], continuations: Sequence[tuple[int, Sequence[int]]]) -> ScoreRow:
    ids, positions, parts = list(context), list(range(len(context))), [0] * len(context)
    targets: list[Target] = []
    for part, (pair, continuation) in enumerate(continuations, start=1):
        before = len(context) - 1
        for offset, token in enumerate(continuation):
            targets.append(Target(pair=pair, position=before, id=token))
            before = len(ids)
            ids.append(token)
            positions.append(len(context) + offset)
            parts.append(part)
    return ScoreRow(ids=ids, positions=positions, parts=parts, targets=targets)


def by_budget(lengths: Sequence[int], *, tokens: int, rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first.

    Args:
        lengths: tokens of each item.
        tokens: most tokens of a batch, padding counted; a longer item is a batch by itself.
        rows: most items of a batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        count = max(1, min(rows, tokens // max(1, lengths[order[0]])))
        yield order[:count]
        order = order[count:]


def check_lengths(lengths: Sequence[int], context_tokens: int) -> None:
    """UserError when an item is longer than the model's context: cutting it would change what is measured."""
    if lengths and max(lengths) > context_tokens:
        raise UserError(
            wanted=f"items of at most {context_tokens} tokens, the model's context",
            got=f"one of {max(lengths)} tokens",
            next_step="measure a model with a longer context, or leave out the task with these items.",
        )


def cut_at_stop(text: str, stop: Sequence[str]) -> str | None:
    """The text before the first stop string in it, or None where there is none."""
    places = [place for place in (text.find(string) for string in stop if string) if place >= 0]
    return text[: min(places)] if places else None
