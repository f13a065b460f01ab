"""Text to packed rows: read, cleaned, deduplicated, decontaminated, cut into splits, packed.

`config` says what is wanted, `shards` cleans the sources piece by piece, `repeats` finds documents that are there
twice, `cutting` writes what is left, split by split, `card` tells what happened, `stage` is all of it in order.
`engine` runs the same cleaning on a cluster.
"""

from distill.corpus.config import CorpusConfig, TextSource
from distill.corpus.stage import corpus

__all__ = ["CorpusConfig", "TextSource", "corpus"]
