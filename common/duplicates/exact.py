"""Exact duplicates: the second copy of a text, recognised by a digest of 16 bytes.

Two texts are the same when they agree after Unicode normalisation (NFC) and without white space at either end. The
digest also serves as the text's place in a split (`common.splits`). It knows no file and no stage.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from common.duplicates.sorting import sorted_ranges

DIGEST_BYTES = 16


def digest(text: str, *, seed: int = 0) -> bytes:
    """16 bytes that stand for `text`: equal for equal texts, different (2**-64 at 4 billion texts) for others."""
    normal = unicodedata.normalize("NFC", text).strip()
    return hashlib.blake2b(normal.encode(), digest_size=DIGEST_BYTES, salt=seed.to_bytes(16, "little")).digest()


class ExactDuplicates:
    """Remembers every digest that it was shown."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def seen_before(self, key: bytes) -> bool:
        """Whether `key` was shown before; remembers it."""
        if key in self._seen:
            return True
        self._seen.add(key)
        return False


def repeated(count: int, digests: Callable[[], Iterator[NDArray[np.uint64]]]) -> NDArray[np.bool_]:
    """Which texts have the digest of an earlier one; memory holds a byte of each.

    Args:
        count: number of texts.
        digests: gives the digests of all texts in order, in pieces [texts, 2]; called twice or more.
    """
    found = np.zeros(count, bool)
    for keys, texts in sorted_ranges(count, lambda: (piece[:, 0] for piece in digests())):
        same = np.flatnonzero(keys[1:] == keys[:-1])
        if len(same):
            # Rare, so that their second halves fit: two texts with one first half are nearly always one text.
            suspects = np.unique(np.concatenate([texts[same], texts[same + 1]]))
            found[_repeats_among(suspects, digests())] = True
    return found


def _repeats_among(suspects: NDArray[np.int64], digests: Iterator[NDArray[np.uint64]]) -> NDArray[np.int64]:
    """Those of some texts, given in ascending order, whose whole digest an earlier one of them has."""
    start = 0
    whole: list[NDArray[np.uint64]] = []
    for piece in digests:
        inside = suspects[(suspects >= start) & (suspects < start + len(piece))]
        whole.append(piece[inside - start])
        start += len(piece)
    _, firsts = np.unique(np.concatenate(whole), axis=0, return_index=True)
    return np.delete(suspects, firsts)
