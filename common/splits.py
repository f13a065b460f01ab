"""Which documents train, and which calibrate, validate and test: cut once, by each document's own digest.

A document's split depends on its digest alone, not on its place in the file, so that a corpus may grow or be reordered
without moving test documents into training. It knows no file and no stage.
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
    """Shares of the documents, 0 to 1; what they leave is train."""

    calibration: float = 0.01
    """Steers quantisation; disjoint from what is scored."""
    validation: float = 0.01
    """Chooses the best checkpoint."""
    test: float = 0.02
    """Read by the report only."""

    def __post_init__(self) -> None:
        shares = (self.calibration, self.validation, self.test)
        if min(shares) < 0 or sum(shares) >= 1:
            raise UserError(
                wanted="shares of at least 0 that leave something to train on (sum below 1)",
                got=f"calibration {self.calibration}, validation {self.validation}, test {self.test}",
                next_step="Lower the shares.",
            )


def assign_splits(digests: Iterable[bytes], shares: Shares) -> NDArray[np.uint8]:
    """The split of each document, as its place in `SPLITS`.

    Train, and then every split with a share, gets at least one document where there are enough of them: one that the
    digests leave empty takes one from train, or from whichever can spare it.

    Args:
        digests: the documents' digests, all different (`common.duplicates.digest`).
        shares: how much each split gets.
    """
    return assign_places(np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64), shares)


def assign_places(numbers: NDArray[np.uint64], shares: Shares) -> NDArray[np.uint8]:
    """`assign_splits` for digests given as numbers: the first 8 bytes of each, big end first."""
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
