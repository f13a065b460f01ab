"""The second and third pass: which cleaned documents are kept, and the kept ones in order and by split.

Exact and near-duplicates are removed, except the earliest of each set. Without weights the sources then follow one
another. With weights the next document is always from the source with the fewest characters for its weight, so that any
prefix of the order holds the sources in the ratio of their weights, until one ends. Memory holds 9 bytes a document.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.documents import Shares, assign_by_number, write_documents
from common.duplicates import NearDuplicatesConfig, exact_duplicates, near_duplicates
from common.metrics import progress
from distill.corpus.shards import CheckValues, Shard, TextSource

KEPT, EXACT, NEAR = 0, 1, 2
RULES = {EXACT: "exact duplicate", NEAR: "near duplicate"}


def find_duplicates(
    shards: Sequence[Shard], near: NearDuplicatesConfig | None, *, folders: Sequence[Path]
) -> NDArray[np.uint8]:
    """The status of every document of all shards, in order: KEPT, EXACT or NEAR [documents].

    The shards are those of all `folders`, in order. `near` is the config that the documents were cleaned with; None
    finds exact duplicates only.
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


def write_kept(
    folder: Path, sources: Sequence[TextSource], shards: Sequence[Shard], status: NDArray[np.uint8], shares: Shares
) -> int | None:
    """Write every kept document, by its `status` from `find_duplicates` [documents], to the file of its split.

    Returns the number of documents at the beginning of train in which the weights hold, None without weights.
    """
    first_halves = [np.zeros(0, np.uint64), *(np.asarray(shard.array("digests"))[:, 0] for shard in shards)]
    splits = np.zeros(len(status), np.uint8)
    splits[status == KEPT] = assign_by_number(np.concatenate(first_halves)[status == KEPT], shares)
    num_mixed = 0

    def kept() -> Iterator[tuple[int, str]]:
        nonlocal num_mixed
        for place, line, is_mixed in in_order(sources, shards, status):
            num_mixed += is_mixed and int(splits[place]) == 0
            yield int(splits[place]), line

    write_documents(folder, progress(kept(), label="writing", unit="documents", total=int((status == KEPT).sum())))
    return num_mixed if all(source.weight is not None for source in sources) else None


def in_order(
    sources: Sequence[TextSource], shards: Sequence[Shard], status: NDArray[np.uint8]
) -> Iterator[tuple[int, str, bool]]:
    """Yield (index over all shards, line, whether no source has ended) of every kept document, in the corpus's order.

    The shards can be a part of all; `status` is that of their documents [documents].
    """
    streams = {number: _of_source(number, shards, status) for number in range(len(sources))}
    weights = [source.weight for source in sources if source.weight is not None]
    if len(weights) < len(sources):
        for stream in streams.values():
            yield from ((place, line, False) for place, line, _ in stream)
        return
    given = dict.fromkeys(streams, 0.0)  # characters over weight
    while streams:
        poorest = min(streams, key=given.__getitem__)
        following = next(streams[poorest], None)
        if following is None:
            del streams[poorest], given[poorest]
            continue
        place, line, characters = following
        given[poorest] += characters / weights[poorest]
        yield place, line, len(streams) == len(sources)


def _of_source(number: int, shards: Sequence[Shard], status: NDArray[np.uint8]) -> Iterator[tuple[int, str, int]]:
    """(index, line, characters) of the kept documents of one source."""
    start = 0
    for shard in shards:
        if shard.source == number:
            characters = np.asarray(shard.array("characters"))
            for offset, line in enumerate(shard.lines()):
                if status[start + offset] == KEPT:
                    yield start + offset, line, int(characters[offset])
        start += shard.documents
