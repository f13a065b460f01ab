"""Sources in the shares that their weights ask for: thinned, never repeated.

The scarcest source gives all it has, and of each other one as many rows as its share of the total. Which rows stay
depends on their digests alone, so that the same rows in another order give the same choice. A row's split is read from
the first half of its digest and the choice from the second: no split is thinned more than another.
"""

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from common.duplicates import DIGEST_BYTES
from common.errors import InputError
from common.rows import Row


@dataclass(frozen=True, slots=True)
class Clean:
    """A conversation that passed every rule."""

    source: int
    """Place of its source."""
    digest: bytes
    row: Row
    tokens: int


def rows_of_each(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows of each source: the largest total whose shares hold to a row.

    Each source's rows differ from its exact share of the total by less than one, and the total is their sum.

    Args:
        available: rows that each source has.
        weights: shares, above 0; only their ratios count.
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
    rows: Iterable[Clean], names: Sequence[str], weights: Sequence[float], scratch: Path
) -> Iterator[tuple[Clean, bool]]:
    """Yields every row with whether it stays, in order, once the last one was seen; memory holds 22 bytes of each.

    Args:
        rows: of all sources.
        names: of the sources, for errors.
        weights: one for each source.
        scratch: a folder for the rows while they wait.

    Raises:
        InputError: a source has no row.
    """
    waiting = scratch / "mixing.jsonl"
    sources, tokens, digests = array("H"), array("I"), bytearray()
    try:
        with waiting.open("w", encoding="utf-8", newline="\n") as file:
            for clean in rows:
                sources.append(clean.source)
                tokens.append(clean.tokens)
                digests += clean.digest
                file.write(json.dumps(clean.row, ensure_ascii=False) + "\n")
        stays = _chosen(sources, digests, names, weights)
        with waiting.open(encoding="utf-8", newline="\n") as file:
            for place, line in enumerate(file):
                digest = bytes(digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES])
                yield Clean(sources[place], digest, json.loads(line), tokens[place]), bool(stays[place])
    finally:
        waiting.unlink(missing_ok=True)


def _chosen(
    sources: "array[int]", digests: bytearray, names: Sequence[str], weights: Sequence[float]
) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    of_source = np.array(sources, dtype=np.int64)
    ranks = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 2)[:, 1]
    available = np.bincount(of_source, minlength=len(weights)).tolist()
    for name, count in zip(names, available, strict=True):
        if count == 0:
            raise InputError(
                wanted=f"conversations of {name}, which has a weight",
                got="none that are left",
                next_step="Leave the source out, or loosen what removed its rows.",
            )
    stays = np.zeros(len(of_source), dtype=np.bool_)
    for source, count in enumerate(rows_of_each(available, weights)):
        members = np.flatnonzero(of_source == source)
        stays[members[np.argsort(ranks[members], kind="stable")[:count]]] = True
    return stays
