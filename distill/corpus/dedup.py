"""The second pass: which cleaned documents are there twice, exactly or nearly. The earliest of each set stays."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.duplicates import NearDuplicatesConfig, repeated
from common.duplicates.near import find
from distill.corpus.shards import CheckingValues, Shard

KEPT, EXACT, NEAR = 0, 1, 2
RULES = {EXACT: "exact duplicate", NEAR: "near duplicate"}


def find_repeats(
    shards: Sequence[Shard], near: NearDuplicatesConfig | None, *, folders: Sequence[Path]
) -> NDArray[np.uint8]:
    """KEPT, EXACT or NEAR for every document of all shards, in order.

    Args:
        shards: of all folders, in order.
        near: as the documents were cleaned with; None looks for exact duplicates only.
        folders: the shards' folders, in order.
    """
    count = sum(shard.documents for shard in shards)
    exact = repeated(count, lambda: (np.asarray(shard.array("digests")) for shard in shards))
    fates = np.where(exact, EXACT, KEPT).astype(np.uint8)
    if near is not None and count:
        filled = [shard for shard in shards if shard.documents]
        held = [sum(shard.documents for shard in shards if shard.stem.parent == folder) for folder in folders]

        def band_keys(band: int) -> Iterator[NDArray[np.uint64]]:
            return (np.asarray(shard.array("band_keys")[band]) for shard in filled)

        checks = CheckingValues(folders, held, near.permutations)
        fates[find(count, band_keys, checks, near, already_removed=exact) & ~exact] = NEAR
    return fates
