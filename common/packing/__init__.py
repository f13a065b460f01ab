"""Packed rows: several documents in one row of fixed length, never attending to or predicting across one another.

- `writing.py`: tokenised documents to a split folder, one window of documents in memory, however large the corpus is.
- `reading.py`: a split folder to batches, and the rows of each optimizer step.

Independent of text, templates and stages.
"""

from common.packing.reading import Batch, PackedRows, VarlenBatch, rows_of_step
from common.packing.writing import FULL_WEIGHT, Document, pack, write_packed

__all__ = ["FULL_WEIGHT", "Batch", "Document", "PackedRows", "VarlenBatch", "pack", "rows_of_step", "write_packed"]
