"""Deduplication of texts: exact copies by a digest, near-duplicates by MinHash and locality-sensitive hashing.

The signature of a text is, for each of many permutations, the smallest hash of its character n-grams. The share of
places in which two signatures agree estimates the Jaccard similarity of the two sets of n-grams (Broder 1997).
Signatures (by `rensa`) are cut into bands: texts that agree in a whole band are candidates, and the later one is
removed if the estimate over the whole signature reaches the wanted similarity. Callers keep signatures on disk; bands
are sorted one at a time, so that memory grows by 6 bytes a text only. Independent of files and stages.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.errors import require_above, require_at_least, require_between
from common.ngrams import code_points, window_hashes

DIGEST_BYTES = 16
MAX_SORTED = 2**23
"""Keys sorted at once: 64 MiB of keys and 64 MiB of their order."""

# Each member of a band's group is compared with this number of members before it. The order of a group puts texts next
# to each other that agree in one more permutation, so that large groups need not be compared in full.
_COMPARED = 4
_GROUP_BITS = 40
_PAIRS_AT_ONCE = 2**16


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicatesConfig:
    """When two texts count as near-duplicates."""

    similarity: float = 0.5
    """Smallest estimated Jaccard similarity of the n-grams of two texts, 0 to 1, that removes the later text. A text of
    four sentences with one of them replaced has about 0.6."""
    ngram_characters: int = 5
    """Characters of an n-gram, without white space."""
    bands: int = 64
    """Bands of a signature: more bands find less similar texts."""
    band_permutations: int = 4
    """Permutations in a band: more permutations give fewer candidates that are not similar."""

    def __post_init__(self) -> None:
        require_at_least(1, ngram_characters=self.ngram_characters, bands=self.bands)
        require_at_least(1, band_permutations=self.band_permutations)
        require_above(0, similarity=self.similarity)
        require_between(0, 1, similarity=self.similarity)

    @property
    def permutations(self) -> int:
        """Length of a signature."""
        return self.bands * self.band_permutations


def digest(text: str, *, seed: int = 0) -> bytes:
    """16 bytes that identify `text` after Unicode normalisation (NFC), without white space at both ends.

    Two different texts among 4 billion share a digest with probability 2**-64. The digest also chooses the split.
    """
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


def signatures(texts: Sequence[str], config: NearDuplicatesConfig) -> tuple[NDArray[np.uint64], NDArray[np.uint16]]:
    """Band keys [texts, bands] and check values [texts, permutations] of some texts.

    The high bits of a band key find candidates, the low bits order them. The check values are the low halves of the
    signature: of two different ones, one in 65,536 agrees by chance.
    """
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    hashes = [_ngram_hashes(text, config.ngram_characters) for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in hashes])]).astype(np.uint64)
    flat = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, config.permutations, 0)
    signature_NP = np.array(matrix.to_rows(), np.uint32).reshape(-1, config.permutations)
    return _band_keys(signature_NP, config), signature_NP.astype(np.uint16)


def near_duplicates(
    count: int,
    band_keys: Callable[[int], Iterator[NDArray[np.uint64]]],
    checks: Callable[[NDArray[np.int64]], NDArray[np.uint16]],
    config: NearDuplicatesConfig,
    *,
    already_removed: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which texts are near-duplicates of an earlier text, directly or through others.

    Args:
        count: number of texts (N).
        band_keys: `band_keys(band)` yields the keys of that band of all texts in order, in pieces.
        checks: `checks(texts)` returns the check values [len(texts), permutations].
        config: the config of `signatures`.
        already_removed: texts to skip [N].
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
    """Join the sets of texts that are close in the order of a group and similar enough."""
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
            for pair in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
                one, other = (_root(first, text) for text in pair)
                first[max(one, other)] = min(one, other)


def _root(first: NDArray[np.signedinteger], text: int) -> int:
    while first[text] != text:
        first[text] = first[first[text]]
        text = int(first[text])
    return text
