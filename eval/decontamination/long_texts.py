"""Finds many texts in a document of code points, by their n-grams. Independent of benchmarks."""

from collections.abc import Mapping
from math import ceil

import numpy as np
from numpy.typing import NDArray

from common.ngrams import code_points, window_hashes

_FILTER_BITS = (12, 24)


def is_long(text: str, *, ngram_characters: int, min_characters: int) -> bool:
    """Whether a text in normal form has `min_characters`, and does not only repeat itself."""
    num_windows = len(text) - ngram_characters + 1
    ngrams = {text[start : start + ngram_characters] for start in range(num_windows)}
    return len(text) >= min_characters and 2 * len(ngrams) >= num_windows


class LongTexts:
    """Searches for many texts in one pass.

    Each n-gram has a run of "holdings": a holding is one text that holds it, identified by its row in one array. A
    table of booleans, read once by the first and once by the last bits of the hash, rejects nearly every n-gram of a
    document that no text has.

    Args:
        texts: long texts in normal form, each with the number that `find` returns for it.
        ngram_characters: length of an n-gram.
        min_overlap: share of a text's n-grams that a document must have, above 0 and at most 1.
    """

    def __init__(self, texts: Mapping[str, int], *, ngram_characters: int, min_overlap: float) -> None:
        self._size = ngram_characters
        self._results = list(texts.values())
        self._lengths = np.array([len(text) for text in texts], np.int64)
        owners = np.repeat(np.arange(self._lengths.size), self._lengths)
        hashes = window_hashes(code_points("".join(texts)), self._size)
        # A window that reaches into the next text belongs to neither.
        inside = owners[: hashes.size] == owners[self._size - 1 :][: hashes.size]
        holdings = np.zeros(int(inside.sum()), [("hash", np.uint64), ("owner", np.int64)])
        holdings["hash"], holdings["owner"] = hashes[inside], owners[: hashes.size][inside]
        holdings = np.unique(holdings)
        self._owners = np.ascontiguousarray(holdings["owner"])
        self._ngrams, starts = np.unique(holdings["hash"], return_index=True)
        self._starts = np.append(starts, holdings.size)
        counts = np.bincount(self._owners, minlength=self._lengths.size)
        # Minus a tolerance: 0.56 times 25 is more than 14 in binary.
        self._needed = np.array([ceil(min_overlap * count - 1e-9) for count in counts], np.int64)
        self._least_needed = np.minimum.reduceat(self._needed[self._owners], starts) if texts else self._needed
        bits = min(max(int(self._ngrams.size * 32).bit_length(), _FILTER_BITS[0]), _FILTER_BITS[1])
        self._shift, self._mask = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
        self._may_be = np.zeros(1 << bits, np.bool_)
        self._may_be[self._ngrams >> self._shift] = True
        self._may_be[self._ngrams & self._mask] = True

    def find(self, codes: NDArray[np.uint32]) -> int | None:
        """The number of the text with the most n-grams in the document, of those that have enough."""
        if not self._results:
            return None
        hashes = window_hashes(codes, self._size)
        places = np.flatnonzero(self._may_be.take((hashes >> self._shift).view(np.int64)))
        hashes = hashes[places]
        again = self._may_be[hashes & self._mask]
        places, hashes = places[again], hashes[again]
        rows = np.minimum(np.searchsorted(self._ngrams, hashes), self._ngrams.size - 1)
        known = self._ngrams[rows] == hashes
        rows, places = rows[known], places[known]
        if not rows.size or rows.size < self._least_needed[rows].min():
            return None
        counts = self._starts[rows + 1] - self._starts[rows]
        # All holdings of all rows: each run counts up from its start.
        run_starts = np.repeat(self._starts[rows] - np.cumsum(counts) + counts, counts)
        holdings = run_starts + np.arange(run_starts.size)
        owners, hits = np.unique(self._owners[holdings], return_counts=True)
        owners = owners[hits >= self._needed[owners]]
        if not owners.size:
            return None
        hopeful = np.isin(self._owners[holdings], owners)
        return self._best(holdings[hopeful], np.repeat(places, counts)[hopeful])

    def _best(self, holdings: NDArray[np.int64], places: NDArray[np.int64]) -> int | None:
        """Counts the different n-grams of each text in stretches of twice its length that overlap by half."""
        stretches = places // self._lengths[self._owners[holdings]] + 1
        keys = np.concatenate([stretches, stretches - 1]) * self._owners.size + np.tile(holdings, 2)
        stretches, holdings = np.divmod(np.unique(keys), self._owners.size)
        keys, counts = np.unique(stretches * self._lengths.size + self._owners[holdings], return_counts=True)
        owners = keys % self._lengths.size
        counts = np.where(counts >= self._needed[owners], counts, 0)
        best = int(counts.argmax())
        return self._results[owners[best]] if counts[best] else None
