"""Packed rows as batches, and which rows an optimizer step takes.

Shape suffixes: B batch rows, T tokens in a row, R rows of the split, M real tokens of a batch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import UserError, damaged, not_found
from common.packing.writing import ARRAYS, FULL_WEIGHT, LABELS
from common.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Padded rows; torch tensors [B, T] on the CPU."""

    tokens_BT: torch.Tensor
    """int64 token ids."""
    doc_ids_BT: torch.Tensor
    """int64: 1, 2, .. inside each row, 0 on padding."""
    position_ids_BT: torch.Tensor
    """int64: 0 at the start of each document (and of the padding)."""
    targets_BT: torch.Tensor
    """int64: the next token of the same document, 0 where there is none."""
    weights_BT: torch.Tensor
    """float32: loss weight of predicting the target, 1.0 = full; 0 where there is none."""
    num_valid_tokens: int
    """Targets whose weight is above 0."""

    def varlen(self) -> "VarlenBatch":
        """The batch without its padding."""
        is_real_BT = self.doc_ids_BT > 0
        starts_M = (self.position_ids_BT[is_real_BT] == 0).nonzero().flatten()
        ends_M = torch.cat([starts_M[1:], is_real_BT.sum()[None]])
        return VarlenBatch(
            tokens_M=self.tokens_BT[is_real_BT],
            positions_M=self.position_ids_BT[is_real_BT],
            targets_M=self.targets_BT[is_real_BT],
            weights_M=self.weights_BT[is_real_BT],
            lengths=tuple((ends_M - starts_M).tolist()),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VarlenBatch:
    """The M real tokens of a batch, without padding, row after row and document after document; tensors on the CPU."""

    tokens_M: torch.Tensor
    """int64 token ids."""
    positions_M: torch.Tensor
    """int64: 0 at the start of each document."""
    targets_M: torch.Tensor
    """int64: the next token of the same document, 0 where there is none."""
    weights_M: torch.Tensor
    """float32: loss weight of predicting the target."""
    lengths: tuple[int, ...]
    """Tokens of each document; their sum is M."""


class PackedRows:
    """The rows of one split folder, mapped from disk.

    Attributes:
        meta: the content of meta.json.
        sequence_tokens: tokens in a row (T).
        num_rows: rows in use.
        num_tokens: tokens in these rows, padding not counted.
    """

    def __init__(self, folder: Path, *, limit_tokens: int | None = None) -> None:
        """Open a split; with `limit_tokens` only the first rows that together hold at least that many tokens, or all.

        UserError for a folder that is absent, incomplete or damaged.
        """
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
            shape = (int(self.meta["rows"]), int(self.meta["sequence_tokens"]))
            arrays = [np.load(folder / f"{name}.npy", mmap_mode="r" if shape[0] else None) for name in ARRAYS]
            if any(array.shape != shape for array in arrays):
                raise ValueError(f"arrays of shapes {[array.shape for array in arrays]}, meta.json says {shape}")
        except (OSError, ValueError, KeyError) as error:
            what = "packed rows (tokens.npy, doc_ids.npy, weights.npy, meta.json)"
            next_step = "make it again with `python -m distill corpus` or `python -m instruct conversations`"
            kind = damaged if folder.is_dir() else not_found
            raise kind(what, f"{folder}: {error}", next_step=next_step) from error
        self._tokens_RT, self._doc_ids_RT, self._weights_RT = arrays
        self.num_rows, self.sequence_tokens = shape
        self.num_tokens = int(self.meta["tokens"])
        self._folder = folder
        if limit_tokens is not None and limit_tokens < self.num_tokens:
            self.num_rows = self.num_tokens = 0
            while self.num_tokens < limit_tokens:
                self.num_tokens += int((self._doc_ids_RT[self.num_rows] > 0).sum())
                self.num_rows += 1

    def drawn_tokens(self, *, steps: int, rows_per_step: int, seed: int) -> dict[str, int]:
        """Tokens of each label in the rows that `rows_of_step` gives for all `steps`; {} where documents have none."""
        path = self._folder / LABELS
        if not path.is_file():
            return {}
        labels_RL = np.load(path, mmap_mode="r")[: self.num_rows]
        epochs, rest = divmod(steps * rows_per_step, self.num_rows)
        totals_L = epochs * labels_RL.sum(0, dtype=np.int64)
        totals_L += labels_RL[np.sort(_epoch_order(epochs, self.num_rows, seed)[:rest])].sum(0, dtype=np.int64)
        return dict(zip(self.meta["labels"], totals_L.tolist(), strict=True))

    def require(self, tokenizer: Tokenizer) -> None:
        """UserError when the rows were packed with another tokenizer."""
        if self.meta["tokenizer_sha256"] != tokenizer.sha256:
            wanted = f"rows packed with the tokenizer of {tokenizer.folder} (sha256 {tokenizer.sha256[:12]})"
            got = f"{self._folder} packed with another (sha256 {str(self.meta['tokenizer_sha256'])[:12]})"
            next_step = "pack the corpus again with the model's own tokenizer (`--tokenizer`)"
            raise UserError("mismatch", wanted=wanted, got=got, next_step=next_step)

    def micro_batches(self, row_indices: Sequence[int], micro_batch_rows: int) -> list[VarlenBatch]:
        """The rows of these indices, in this order, `micro_batch_rows` in a batch."""
        starts = range(0, len(row_indices), micro_batch_rows)
        return [self.batch(row_indices[start : start + micro_batch_rows]).varlen() for start in starts]

    def batch(self, row_indices: Sequence[int]) -> Batch:
        """The rows of these indices, in this order, with positions and targets."""
        assert all(0 <= row < self.num_rows for row in row_indices)
        rows = list(row_indices)
        tokens_BT = self._tokens_RT[rows].astype(np.int64)
        doc_ids_BT = self._doc_ids_RT[rows].astype(np.int64)
        same_BT = np.zeros_like(tokens_BT, dtype=bool)
        same_BT[:, :-1] = (doc_ids_BT[:, 1:] == doc_ids_BT[:, :-1]) & (doc_ids_BT[:, 1:] > 0)
        next_BT = np.roll(tokens_BT, -1, axis=1)
        weights_BT = np.roll(self._weights_RT[rows], -1, axis=1).astype(np.float32) / FULL_WEIGHT
        weights_BT = np.where(same_BT, weights_BT, np.float32(0))
        return Batch(
            tokens_BT=torch.from_numpy(tokens_BT),
            doc_ids_BT=torch.from_numpy(doc_ids_BT),
            position_ids_BT=torch.from_numpy(_positions(doc_ids_BT)),
            targets_BT=torch.from_numpy(np.where(same_BT, next_BT, 0)),
            weights_BT=torch.from_numpy(weights_BT),
            num_valid_tokens=int((weights_BT > 0).sum()),
        )


def _positions(doc_ids_BT: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places counted from the start of each document."""
    places_BT = np.broadcast_to(np.arange(doc_ids_BT.shape[1]), doc_ids_BT.shape)
    starts_BT = np.zeros_like(doc_ids_BT)
    starts_BT[:, 1:] = np.where(doc_ids_BT[:, 1:] != doc_ids_BT[:, :-1], places_BT[:, 1:], 0)
    return places_BT - np.maximum.accumulate(starts_BT, axis=1)


@lru_cache(maxsize=4)
def _epoch_order(epoch: int, num_rows: int, seed: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(seed=[seed, epoch])).permutation(num_rows)


def rows_of_step(step: int, *, rows_per_step: int, num_rows: int, seed: int) -> list[int]:
    """Row indices of optimizer step `step` (the first is 0), for all ranks and micro-batches together.

    A pure function: every epoch is a fresh permutation of all rows and the steps cut the sequence of epochs into equal
    parts, so that a resumed run or one with more processes sees the same rows.
    """
    assert num_rows > 0 and rows_per_step > 0 and step >= 0
    first = step * rows_per_step
    places = range(first, first + rows_per_step)
    return [int(_epoch_order(place // num_rows, num_rows, seed)[place % num_rows]) for place in places]
