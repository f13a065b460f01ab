"""Sorting more keys than memory should hold: range by range, each range read and sorted by itself."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MAX_SORTED = 2**23
"""Keys that are sorted at one time: 64 MiB of them, and as much again for their order."""


def sorted_ranges(
    count: int, pieces: Callable[[], Iterator[NDArray[np.uint64]]], left_out: NDArray[np.bool_] | None = None
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yields (keys, places) in ascending order of keys, equal keys in ascending order of places and in one range.

    Args:
        count: number of keys.
        pieces: gives all keys in order, in pieces; called once a range. Keys are evenly spread hashes.
        left_out: places that take no part.
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
