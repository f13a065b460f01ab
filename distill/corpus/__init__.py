"""Text to packed rows: read, clean, deduplicate, decontaminate, split, pack.

- `stage`: the config, and the passes in order
- `shards`: the first pass, cleans the sources in resumable shards (`distill.text` has the rules)
- `kept`: the second and third pass, finds duplicates and writes the kept documents by split
- `data_card`: rows in, removed by rule and out, by source
- `engine`: the same passes on a cluster
- `cli`: the verb `python -m distill corpus`
"""

from distill.corpus.shards import TextSource
from distill.corpus.stage import CorpusConfig, corpus

__all__ = ["CorpusConfig", "TextSource", "corpus"]
