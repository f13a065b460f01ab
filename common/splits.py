"""Splits of documents: train, calibration, validation and test, chosen once by the digest of each document.

The split depends on the digest, not on the place in a file: a corpus can grow or change its order, and no test document
moves into train. Independent of files and stages.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

SPLITS = ("train", "calibration", "validation", "test")
# A small corpus fills its splits in this order, one document each, before any share counts.
_NEEDED_FIRST = ("train", "validation", "test", "calibration")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """Shares of the documents, 0 to 1; the rest is train."""

    calibration: float = 0.01
    """Used by quantisation, never scored."""
    validation: float = 0.01
    """Used to choose the best checkpoint."""
    test: float = 0.02
    """Used by the report only."""

    def __post_init__(self) -> None:
        shares = (self.calibration, self.validation, self.test)
        if min(shares) < 0 or sum(shares) >= 1:
            wanted = "shares of at least 0 with a sum below 1, so that train is not empty"
            got = f"calibration {self.calibration}, validation {self.validation}, test {self.test}"
            raise UserError("out-of-range", wanted=wanted, got=got, next_step="lower the shares")


def assign_splits(digests: Iterable[bytes], shares: Shares) -> NDArray[np.uint8]:
    """The split of each document, as its index in `SPLITS`: `assign_by_number` of the first 8 bytes, big-endian.

    Args:
        digests: `common.duplicates.digest` of each document, all different.
        shares: share of each split.
    """
    return assign_by_number(np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64), shares)


def assign_by_number(numbers: NDArray[np.uint64], shares: Shares) -> NDArray[np.uint8]:
    """The split of each document, as its index in `SPLITS`, from a hash of the document [documents].

    Train, and then every split with a share, gets at least one document if there are enough: an empty split takes one
    from train, or from any split that has more than one.
    """
    held_out = [shares.calibration, shares.validation, shares.test]
    places = np.searchsorted(np.cumsum(held_out), numbers.astype(np.float64) / 2**64, side="right")
    splits = np.where(places == len(held_out), 0, places + 1).astype(np.uint8)
    order = [SPLITS.index(name) for name in _NEEDED_FIRST if name == "train" or getattr(shares, name) > 0]
    for rank, split in enumerate(order):
        counts = np.bincount(splits, minlength=len(SPLITS))
        if counts[split] == 0:
            spare = [other for other in order if counts[other] > 1]
            donors = spare or [other for other in order[rank + 1 :] if counts[other] > 0]
            if donors:
                members = np.flatnonzero(splits == donors[0])
                splits[members[numbers[members].argmin()]] = split
    return splits
