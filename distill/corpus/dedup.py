"""The second pass: exact and near-duplicates among all cleaned documents. The earliest of each set is kept."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.duplicates import NearDuplicatesConfig, exact_duplicates, near_duplicates
from distill.corpus.shards import CheckValues, Shard

KEPT, EXACT, NEAR = 0, 1, 2
RULES = {EXACT: "exact duplicate", NEAR: "near duplicate"}


def find_duplicates(
    shards: Sequence[Shard], near: NearDuplicatesConfig | None, *, folders: Sequence[Path]
) -> NDArray[np.uint8]:
    """The status of every document of all shards, in order: KEPT, EXACT or NEAR [documents].

    Args:
        shards: of all folders, in order.
        near: the config that the documents were cleaned with; None finds exact duplicates only.
        folders: the folders of the shards, in order.
    """
    count = sum(shard.documents for shard in shards)
    exact = exact_duplicates(count, lambda: (np.asarray(shard.array("digests")) for shard in shards))
    status = np.where(exact, EXACT, KEPT).astype(np.uint8)
    if near is not None and count:
        filled = [shard for shard in shards if shard.documents]
        held = [sum(shard.documents for shard in shards if shard.stem.parent == folder) for folder in folders]

        def band_keys(band: int) -> Iterator[NDArray[np.uint64]]:
            return (np.asarray(shard.array("band_keys")[band]) for shard in filled)

        checks = CheckValues(folders, held, near.permutations)
        status[near_duplicates(count, band_keys, checks, near, already_removed=exact) & ~exact] = NEAR
    return status
