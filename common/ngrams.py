"""Character n-grams as numbers: a hash of every window of a text, computed for the whole text at once."""

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd: multiplying by it loses no information
_SHIFT = np.uint64(32)


def code_points(text: str) -> NDArray[np.uint32]:
    """The Unicode code points of `text`; a lone surrogate counts as its code."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def window_hashes(codes: NDArray[np.uint32], size: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each window of `size` code points, in order; empty if there are fewer code points.

    Equal windows have equal hashes. Each code point is added, followed by a multiplication modulo 2**64 and a shift
    that brings the high bits down, so that all bits depend on every code point.
    """
    count = len(codes) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for place in range(size):
        hashes += codes[place : place + count]
        hashes *= _MULTIPLIER
        hashes ^= hashes >> _SHIFT
    hashes *= _MULTIPLIER
    return hashes ^ (hashes >> _SHIFT)
