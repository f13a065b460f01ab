"""Exact duplicates: the second copy of a text, found by a digest of 16 bytes.

Two texts are equal if they agree after Unicode normalisation (NFC) and without white space at both ends. The digest
also chooses the split of a text (`common.splits`). `sorted_ranges` sorts more keys than fit in memory; `near` uses it
too.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
MAX_SORTED = 2**23
"""Keys sorted at once: 64 MiB of keys and 64 MiB of their order."""


def digest(text: str, *, seed: int = 0) -> bytes:
    """16 bytes that identify `text`: two different texts among 4 billion share a digest with probability 2**-64."""
    normal = unicodedata.normalize("NFC", text).strip()
    return hashlib.blake2b(normal.encode(), digest_size=DIGEST_BYTES, salt=seed.to_bytes(16, "little")).digest()


def exact_duplicates(count: int, digests: Callable[[], Iterator[NDArray[np.uint64]]]) -> NDArray[np.bool_]:
    """Which texts have the digest of an earlier text; memory holds one byte a text.

    Args:
        count: number of texts.
        digests: yields the digests of all texts in order, in pieces [texts, 2]; called at least twice.
    """
    found = np.zeros(count, bool)
    for keys, texts in sorted_ranges(count, lambda: (piece[:, 0] for piece in digests())):
        same = np.flatnonzero(keys[1:] == keys[:-1])
        if len(same):
            # Few, so that their second halves fit in memory: texts with equal first halves are nearly always equal.
            suspects = np.unique(np.concatenate([texts[same], texts[same + 1]]))
            found[_repeats_among(suspects, digests())] = True
    return found


def _repeats_among(suspects: NDArray[np.int64], digests: Iterator[NDArray[np.uint64]]) -> NDArray[np.int64]:
    """Those of `suspects` (ascending) whose whole digest equals that of an earlier one."""
    start = 0
    whole: list[NDArray[np.uint64]] = []
    for piece in digests:
        inside = suspects[(suspects >= start) & (suspects < start + len(piece))]
        whole.append(piece[inside - start])
        start += len(piece)
    _, firsts = np.unique(np.concatenate(whole), axis=0, return_index=True)
    return np.delete(suspects, firsts)


def sorted_ranges(
    count: int, pieces: Callable[[], Iterator[NDArray[np.uint64]]], left_out: NDArray[np.bool_] | None = None
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield (keys, indices) in ascending order of keys; equal keys are in one range, in ascending order of indices.

    Args:
        count: number of keys.
        pieces: yields all keys in order, in pieces; called once a range. Keys are evenly distributed hashes.
        left_out: indices to skip.
    """
    ranges = -(-count // MAX_SORTED)
    edges = [2**64 * edge // max(1, ranges) for edge in range(ranges + 1)]
    for low, high in pairwise(edges):
        keys: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        places: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        start = 0
        for piece in pieces():
            inside = (piece >= np.uint64(low)) & (piece <= np.uint64(high - 1))
            if left_out is not None:
                inside &= ~left_out[start : start + len(piece)]
            keys.append(piece[inside])
            places.append(np.flatnonzero(inside) + start)
            start += len(piece)
        all_keys, all_places = np.concatenate(keys), np.concatenate(places)
        order = np.argsort(all_keys, kind="stable")
        yield all_keys[order], all_places[order]
