"""Packed rows: several documents in one row of fixed length, never attending to or predicting across one another.

`write_packed` streams tokenised documents into a split folder, `PackedRows` maps it and gives batches. Memory holds one
window of documents, however large the corpus is. It knows neither text nor templates, and no stage.
"""

from common.packing.layout import FULL_WEIGHT
from common.packing.reading import Batch, PackedRows, VarlenBatch, rows_of_step
from common.packing.writing import Document, pack, write_packed

__all__ = ["FULL_WEIGHT", "Batch", "Document", "PackedRows", "VarlenBatch", "pack", "rows_of_step", "write_packed"]
