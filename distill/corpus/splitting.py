"""The third pass: the documents that are left, in their order and split by split, to `documents/`.

Without weights the sources follow one another. With weights a document is always taken from the source that has given
the fewest characters for its weight, so that any beginning of the order holds the sources in the ratio of their
weights, until one of them ends. Memory holds 9 bytes a document.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.documents import write_documents
from common.metrics import progress
from common.splits import Shares, assign_places
from distill.corpus.config import TextSource
from distill.corpus.dedup import KEPT
from distill.corpus.shards import Shard


def write_kept(
    folder: Path, sources: Sequence[TextSource], shards: Sequence[Shard], fates: NDArray[np.uint8], shares: Shares
) -> None:
    """Writes every document that is kept to the file of its split.

    Args:
        folder: the stage's workspace.
        sources: all sources.
        shards: their cleaned documents.
        fates: what becomes of each document (`repeats`).
        shares: how much each split gets.
    """
    splits = np.zeros(len(fates), np.uint8)
    splits[fates == KEPT] = assign_places(_first_halves(shards)[fates == KEPT], shares)
    kept = ((int(splits[place]), line) for place, line in in_order(sources, shards, fates))
    write_documents(folder, progress(kept, label="writing", unit="documents", total=int((fates == KEPT).sum())))


def _first_halves(shards: Sequence[Shard]) -> NDArray[np.uint64]:
    """The first 8 bytes of every document's digest, as numbers."""
    return np.concatenate([np.zeros(0, np.uint64), *(np.asarray(shard.array("digests"))[:, 0] for shard in shards)])


def in_order(
    sources: Sequence[TextSource], shards: Sequence[Shard], fates: NDArray[np.uint8]
) -> Iterator[tuple[int, str]]:
    """(place over all shards, line) of every kept document, in the order in which they are written.

    Args:
        sources: all sources.
        shards: cleaned documents of some of them.
        fates: what becomes of each of these documents.
    """
    streams = {number: _of_source(number, shards, fates) for number in range(len(sources))}
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


def _of_source(number: int, shards: Sequence[Shard], fates: NDArray[np.uint8]) -> Iterator[tuple[int, str, int]]:
    """(place, line, characters) of one source's kept documents."""
    start = 0
    for shard in shards:
        if shard.source == number:
            characters = np.asarray(shard.array("characters"))
            for offset, line in enumerate(shard.lines()):
                if fates[start + offset] == KEPT:
                    yield start + offset, line, int(characters[offset])
        start += shard.documents
