"""Sources in the ratio of their weights: thinned, never repeated.

The scarcest source keeps all its rows, each other one as many as its share of the total. The digests of the rows choose
which, so that another order of the same rows gives the same choice. The first half of a digest determines the split,
the second half the choice: no split is thinned more than another.
"""

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.duplicates import DIGEST_BYTES
from common.errors import InputError
from instruct.conversations.screening import Screened


def rows_of_each(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """The number of rows of each source: the largest total whose shares hold to a row.

    The rows of each source differ from its exact share of the total by less than one, and the total is their sum.

    Args:
        available: rows of each source.
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
    rows: Iterable[Screened], names: Sequence[str], weights: Sequence[float], scratch: Path
) -> Iterator[tuple[Screened, bool]]:
    """Yield every row and whether it is kept, in order, after the last row was read; memory holds 22 bytes a row.

    Args:
        rows: of all sources.
        names: of the sources, for errors.
        weights: of the sources.
        scratch: a folder for the waiting rows.

    Raises:
        InputError: a source has no row.
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
        kept = _chosen(sources, digests, names, weights)
        with waiting.open(encoding="utf-8", newline="\n") as file:
            for place, line in enumerate(file):
                digest = bytes(digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES])
                yield Screened(sources[place], digest, json.loads(line), tokens[place]), bool(kept[place])
    finally:
        waiting.unlink(missing_ok=True)


def _chosen(
    sources: "array[int]", digests: bytearray, names: Sequence[str], weights: Sequence[float]
) -> NDArray[np.bool_]:
    of_source = np.array(sources, dtype=np.int64)
    ranks = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 2)[:, 1]
    available = np.bincount(of_source, minlength=len(weights)).tolist()
    for name, count in zip(names, available, strict=True):
        if count == 0:
            wanted = f"conversations of {name}, which has a weight"
            next_step = "leave the source out, or loosen the rules that removed its rows"
            raise InputError("empty", wanted=wanted, got="none that are left", next_step=next_step)
    kept = np.zeros(len(of_source), dtype=np.bool_)
    for source, count in enumerate(rows_of_each(available, weights)):
        members = np.flatnonzero(of_source == source)
        kept[members[np.argsort(ranks[members], kind="stable")[:count]]] = True
    return kept
