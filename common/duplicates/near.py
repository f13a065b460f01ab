"""Near-duplicates: texts that share most of their character n-grams, found by MinHash and locality-sensitive hashing.

A text's signature is, for each of many permutations, the smallest hash of its n-grams; two signatures agree in a share
of places that estimates the Jaccard similarity of the two sets of n-grams (Broder 1997). Signatures are cut into bands:
texts that agree in a whole band become candidates, and are removed where the estimate over the whole signature reaches
the wanted similarity. `rensa` computes signatures; what is kept of them lies on disk, and bands are sorted one at a
time, so that memory does not grow with the corpus but for 6 bytes a text.

It knows no file format, no stage, and nothing about exact duplicates.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from common.duplicates.sorting import sorted_ranges
from common.errors import UserError
from common.ngrams import code_points, window_hashes

# Members of one band's group that each member is compared with: those before it in the group's order. A group's order
# puts texts side by side that agree in one more permutation, so that large groups need not be compared in full.
_COMPARED = 4
_GROUP_BITS = 40
_PAIRS_AT_ONCE = 2**16


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicatesConfig:
    """When two texts count as one."""

    similarity: float = 0.5
    """Smallest estimated Jaccard similarity of two texts' n-grams, 0 to 1, of which the later is removed. A text of
    four sentences with one of them replaced stands near 0.6."""
    ngram_characters: int = 5
    """Characters of an n-gram; white space does not count."""
    bands: int = 64
    """Bands of a signature: more of them find less similar texts."""
    band_permutations: int = 4
    """Permutations in a band: more of them make fewer candidates of texts that are not similar."""

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1 or min(self.ngram_characters, self.bands, self.band_permutations) < 1:
            raise UserError(
                wanted="a similarity above 0 and up to 1; n-grams, bands and permutations of at least 1",
                got=f"{self.similarity}, {self.ngram_characters}, {self.bands}, {self.band_permutations}",
                next_step="Correct the settings of near-duplicate removal.",
            )

    @property
    def permutations(self) -> int:
        """Length of a signature."""
        return self.bands * self.band_permutations


def signatures(texts: Sequence[str], config: NearDuplicatesConfig) -> tuple[NDArray[np.uint64], NDArray[np.uint16]]:
    """Band keys [texts, bands] and checking values [texts, permutations] of some texts.

    A band key's high bits say which texts are candidates, its low bits order them. The checking values are the low
    halves of the signature: of two different ones, one in 65,536 agrees by chance.
    """
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    hashes = [_ngram_hashes(text, config.ngram_characters) for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in hashes])]).astype(np.uint64)
    flat = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, config.permutations, 0)
    signature_NP = np.array(matrix.to_rows(), np.uint32).reshape(-1, config.permutations)
    return _band_keys(signature_NP, config), signature_NP.astype(np.uint16)


def find(
    count: int,
    band_keys: Callable[[int], Iterator[NDArray[np.uint64]]],
    checks: Callable[[NDArray[np.int64]], NDArray[np.uint16]],
    config: NearDuplicatesConfig,
    *,
    already_removed: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which texts are near-duplicates of an earlier one, directly or through others.

    Args:
        count: number of texts (N).
        band_keys: `band_keys(band)` yields that band's keys of all texts in order, in pieces.
        checks: `checks(texts)` gives the checking values of these texts, a row each.
        config: as the keys were made with.
        already_removed: texts that take no part.
    """
    # Union-find: a root is the earliest text of its set.
    first = np.arange(count, dtype=np.int64 if count > np.iinfo(np.int32).max else np.int32)
    for band in range(config.bands):
        for keys, texts in sorted_ranges(count, partial(band_keys, band), already_removed):
            _join_groups(keys >> np.uint64(64 - _GROUP_BITS), texts, checks, config.similarity, first)
    return first != np.arange(count)


def _ngram_hashes(text: str, size: int) -> NDArray[np.uint64]:
    codes = code_points("".join(text.split()))
    hashes = window_hashes(codes, min(size, max(1, len(codes))))
    return np.unique(hashes) if len(hashes) else np.zeros(1, np.uint64)


def _band_keys(signature_NP: NDArray[np.uint32], config: NearDuplicatesConfig) -> NDArray[np.uint64]:
    bands = signature_NP.reshape(len(signature_NP), config.bands, config.band_permutations).astype(np.uint64)
    mixed = np.zeros(bands.shape[:2], np.uint64)
    for place in range(config.band_permutations):
        mixed = (mixed ^ bands[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.roll(bands[:, :, 0], -1, axis=1)  # the next band's first permutation
    low = np.uint64(64 - _GROUP_BITS)
    return (mixed >> low << low) | (order & ((np.uint64(1) << low) - np.uint64(1)))


def _join_groups(
    groups: NDArray[np.uint64],
    texts: NDArray[np.int64],
    checks: Callable[[NDArray[np.int64]], NDArray[np.uint16]],
    similarity: float,
    first: NDArray[np.signedinteger],
) -> None:
    """Joins the sets of those texts that stand near one another in one group and are similar enough."""
    for distance in range(1, _COMPARED + 1):
        places = np.flatnonzero(groups[distance:] == groups[:-distance])
        for start in range(0, len(places), _PAIRS_AT_ONCE):
            some = places[start : start + _PAIRS_AT_ONCE]
            left, right = texts[some], texts[some + distance]
            different = first[left] != first[right]
            left, right = left[different], right[different]
            if len(left) == 0:
                continue
            alike = (checks(left) == checks(right)).mean(axis=1) >= similarity
            for one, other in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
                _union(first, one, other)


def _union(first: NDArray[np.signedinteger], one: int, other: int) -> None:
    one, other = _root(first, one), _root(first, other)
    first[max(one, other)] = min(one, other)


def _root(first: NDArray[np.signedinteger], text: int) -> int:
    while first[text] != text:
        first[text] = first[first[text]]
        text = int(first[text])
    return text
