"""The third pass: the kept documents, in order and by split, to `documents/`.

Without weights the sources follow one another. With weights the next document is always from the source with the fewest
characters for its weight, so that any prefix of the order holds the sources in the ratio of their weights, until one
ends. Memory holds 9 bytes a document.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.documents import Shares, assign_by_number, write_documents
from common.metrics import progress
from distill.corpus.dedup import KEPT
from distill.corpus.shards import Shard, TextSource


def write_kept(
    folder: Path, sources: Sequence[TextSource], shards: Sequence[Shard], status: NDArray[np.uint8], shares: Shares
) -> None:
    """Write every kept document, by its `status` from `find_duplicates` [documents], to the file of its split."""
    first_halves = [np.zeros(0, np.uint64), *(np.asarray(shard.array("digests"))[:, 0] for shard in shards)]
    splits = np.zeros(len(status), np.uint8)
    splits[status == KEPT] = assign_by_number(np.concatenate(first_halves)[status == KEPT], shares)
    kept = ((int(splits[place]), line) for place, line in in_order(sources, shards, status))
    write_documents(folder, progress(kept, label="writing", unit="documents", total=int((status == KEPT).sum())))


def in_order(
    sources: Sequence[TextSource], shards: Sequence[Shard], status: NDArray[np.uint8]
) -> Iterator[tuple[int, str]]:
    """Yield (index over all shards, line) of every kept document, in the order of the corpus.

    The shards can be a part of all; `status` is that of their documents [documents].
    """
    streams = {number: _of_source(number, shards, status) for number in range(len(sources))}
    if any(source.weight is None for source in sources):
        for stream in streams.values():
            yield from ((place, line) for place, line, _ in stream)
        return
    given = dict.fromkeys(streams, 0.0)  # characters over weight
    while streams:
        poorest = min(streams, key=given.__getitem__)
        following = next(streams[poorest], None)
        if following is None:
            del streams[poorest], given[poorest]
            continue
        place, line, characters = following
        weight = sources[poorest].weight
        assert weight is not None
        given[poorest] += characters / weight
        yield place, line


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
