"""Character n-grams as numbers: hashes of every window of a text, computed for the whole text at once.

It knows nothing of what the hashes are compared for.
"""

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd: multiplying by it loses nothing
_SHIFT = np.uint64(32)


def code_points(text: str) -> NDArray[np.uint32]:
    """The Unicode code points of `text`; half characters count as their code."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def window_hashes(codes: NDArray[np.uint32], size: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each window of `size` code points, in order; none where there are fewer code points.

    Equal windows have equal hashes. Code points are added one after the other, each followed by a multiplication modulo
    2**64 and a shift that brings the high bits down, so that all bits depend on every code point.
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
