"""The protocol of all runtimes, and how items are laid out for one: what shares a context, where an answer ends.

The functions are pure, of ids and texts. `score_rows` is the layout of the checkpoint runtime, `score_waves` that of
llama.cpp.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.rendering import Message

Pair = tuple[Sequence[int], Sequence[int]]
NOT_RUN = "not run on this platform"
"""Why a Core ML package has no scores."""
LogProbs = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One greedy answer."""

    text: str
    """Without special tokens, cut before the first stop string."""
    ids: list[int]
    """Every generated id but the end token."""
    stopped: bool
    """The model gave an end token before the limit, and no stop string cut the text."""


class Runtime(Protocol):
    """What every artifact can do; ids are those of its own tokenizer."""

    context_tokens: int
    """The longest sequence that the model was made for, or less where that was asked for."""
    vocabulary: int
    """Ids that its tokenizer can produce; rows of `logprobs` are this wide."""
    document_end_id: int
    """The id that closes a document, the context of a text that has none."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no token is added, and control tokens spelt in it stay plain text."""
        ...

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation by the artifact's own chat template, with the assistant's turn opened."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids; incomplete UTF-8 becomes U+FFFD."""
        ...

    def logprobs(self, ids: Sequence[int]) -> Iterator[LogProbs]:
        """Log-softmax of the next token after each id, float32 [C, V] in chunks of consecutive positions."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """For each (context, continuation), both non-empty: log p(continuation | context) in nats, and whether greedy
        decoding would give it. Equal contexts are computed once."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str]) -> list[Generation]:
        """Greedy continuations of at most `max_tokens` ids, in the order of the prompts."""
        ...

    def close(self) -> None:
        """Frees the model; no call is possible afterwards."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One token whose probability is asked for."""

    pair: int
    """Index of the pair that it belongs to."""
    position: int
    """What predicts it: index of a token in a `ScoreRow`, of a row of logits in a `Step`."""
    token: int


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


@dataclass(frozen=True, slots=True)
class Position:
    """One token to compute, in llama.cpp's terms."""

    token: int
    pos: int
    """Its index in its sequence."""
    sequence: int
    wants_logits: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Tokens to compute together, and what the logits of those that want them predict."""

    positions: list[Position]
    targets: list[Target]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wave:
    """Pairs that are scored together: each continuation has a sequence of the KV cache."""

    contexts: Step
    """Each context in the first sequence of its pairs; predicts the first token of each continuation."""
    copies: list[tuple[int, int]]
    """Sequences that start as a copy of another: (from, to)."""
    continuations: list[Step]
    """The other tokens, each predicted by the one before it."""


def by_context(pairs: Sequence[Pair], *, most: int | None = None) -> list[list[int]]:
    """Indices of pairs with equal contexts, in the order of first appearance, at most `most` in a group."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        assert len(context) > 0 and len(continuation) > 0, "score needs a context and a continuation"
        groups.setdefault(tuple(context), []).append(index)
    size = most or max(1, len(pairs))
    return [members[i : i + size] for members in groups.values() for i in range(0, len(members), size)]


def score_rows(pairs: Sequence[Pair]) -> list[ScoreRow]:
    """One row for each distinct context."""
    rows: list[ScoreRow] = []
    for members in by_context(pairs):
        context = pairs[members[0]][0]
        row = ScoreRow(ids=list(context), positions=list(range(len(context))), parts=[0] * len(context), targets=[])
        for part, pair in enumerate(members, start=1):
            before = len(context) - 1
            for position, token in enumerate(pairs[pair][1], start=len(context)):
                row.targets.append(Target(pair=pair, position=before, token=token))
                before = len(row.ids)
                row.ids.append(token)
                row.positions.append(position)
                row.parts.append(part)
        rows.append(row)
    return rows


def score_waves(
    pairs: Sequence[Pair], groups: Sequence[list[int]], *, sequences: int, logit_rows: int
) -> Iterator[Wave]:
    """Waves over groups of pairs with equal contexts, the longest contexts first.

    `groups` are indices of pairs as `by_context` gives them, none larger than `sequences`, the KV cache's. A step of
    continuations has at most `logit_rows` tokens.
    """
    rest = sorted(groups, key=lambda members: -len(pairs[members[0]][0]))
    while rest:
        count, used = 0, 0
        while count < len(rest) and used + len(rest[count]) <= sequences:
            used += len(rest[count])
            count += 1
        yield _wave(pairs, rest[:count], logit_rows)
        rest = rest[count:]


def _wave(pairs: Sequence[Pair], groups: Sequence[list[int]], logit_rows: int) -> Wave:
    contexts, continuations = Step(positions=[], targets=[]), Step(positions=[], targets=[])
    copies: list[tuple[int, int]] = []
    sequence = 0
    for row, members in enumerate(groups):
        context = pairs[members[0]][0]
        last = len(context) - 1
        contexts.positions.extend(Position(token, i, sequence, i == last) for i, token in enumerate(context))
        for offset, pair in enumerate(members):
            continuation = pairs[pair][1]
            contexts.targets.append(Target(pair=pair, position=row, token=continuation[0]))
            if offset > 0 and len(continuation) > 1:
                copies.append((sequence, sequence + offset))
            for pos, (token, following) in enumerate(pairwise(continuation), start=len(context)):
                place = len(continuations.targets) % logit_rows
                continuations.positions.append(Position(token, pos, sequence + offset, True))
                continuations.targets.append(Target(pair=pair, position=place, token=following))
        sequence += len(members)
    parts = [slice(start, start + logit_rows) for start in range(0, len(continuations.targets), logit_rows)]
    steps = [Step(positions=continuations.positions[part], targets=continuations.targets[part]) for part in parts]
    return Wave(contexts=contexts, copies=copies, continuations=steps)


def by_budget(lengths: Sequence[int], *, tokens: int, rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, of at most `rows` items.

    A batch has at most `tokens` tokens, padding counted; a longer item is a batch by itself.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        count = max(1, min(rows, tokens // max(1, lengths[order[0]])))
        yield order[:count]
        order = order[count:]


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of equal ids at the start of both."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def check_lengths(lengths: Sequence[int], context_tokens: int) -> None:
    """UserError when an item is longer than the model's context: cutting it would change what is measured."""
    if lengths and max(lengths) > context_tokens:
        wanted, got = f"items of at most {context_tokens} tokens, the model's context", f"one of {max(lengths)} tokens"
        next_step = "measure a model with a longer context, or leave out the task with these items"
        raise UserError("out-of-range", wanted=wanted, got=got, next_step=next_step)


def cut_at_stop(text: str, stop: Sequence[str]) -> str | None:
    """The text before the first stop string in it, or None where there is none."""
    places = [place for place in (text.find(string) for string in stop if string) if place >= 0]
    return text[: min(places)] if places else None


def extend(
    ids: list[int], token: int, *, ends: bool, decode: Callable[[list[int]], str], max_tokens: int, stop: Sequence[str]
) -> Generation | None:
    """Appends one token to the ids of an answer, unless the model `ends` it with this token; the answer when complete.

    `decode` gives the text of ids; `max_tokens` and `stop` are those of `Runtime.generate`.
    """
    if ends:
        return Generation(text=decode(ids), ids=ids, stopped=True)
    ids.append(token)
    text = decode(ids) if stop or len(ids) == max_tokens else ""
    cut = cut_at_stop(text, stop)
    if cut is not None or len(ids) == max_tokens:
        return Generation(text=text if cut is None else cut, ids=ids, stopped=False)
    return None
