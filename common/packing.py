"""Packed rows: several documents in one row of fixed length, never attending to or predicting across one another.

`write_packed` streams tokenised documents into a split folder, `PackedRows` maps it and gives batches. Memory holds one
window of documents, however large the corpus is. Documents longer than a row are cut into consecutive pieces; each
piece is a document of its own. It knows neither text nor templates, and no stage.

Shape suffixes: B batch rows, T tokens in a row, R rows of the split.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import UserError
from common.tokenizer import Tokenizer

# Documents are packed window by window: enough rows for a tight fit, 5 bytes a token of memory (80 MiB).
WINDOW_TOKENS = 2**24
FULL_WEIGHT = 100  # hundredths
_ARRAYS = {"tokens": np.dtype("<i4"), "doc_ids": np.dtype("<i4"), "weights": np.dtype("u1")}


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit, longest first: which documents share a row.

    Args:
        lengths: tokens of each document, 1 to `capacity`.
        capacity: tokens of a row.

    Returns:
        Document indices, one list per row; every index once.
    """
    assert all(0 < length <= capacity for length in lengths), "a document is empty or longer than a row"
    rows: list[list[int]] = []
    rows_with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit s is set while some row has exactly s tokens free: the tightest fit is the lowest bit at or above the length.
    spaces = 0
    for document in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[document]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_space[space].pop()
            if not rows_with_space[space]:
                spaces ^= 1 << space
            rows[row].append(document)
        else:
            space = capacity
            row = len(rows)
            rows.append([document])
        if space > length:
            rows_with_space[space - length].append(row)
            spaces |= 1 << (space - length)
    return rows


class _GrowingArray:
    """An .npy file [R, columns] to which rows are appended; its header is rewritten with R at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any], columns: int) -> None:
        self._file: BinaryIO = path.open("wb+")
        self._dtype, self._columns, self.rows = dtype, columns, 0
        self._write_header()
        self._data_start = self._file.tell()

    def append(self, rows: NDArray[Any]) -> None:
        assert rows.dtype == self._dtype and rows.shape[1] == self._columns
        self._file.write(rows.tobytes())
        self.rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._data_start, "numpy pads the header so that the first axis can grow"
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.rows, self._columns)}
        np.lib.format.write_array_header_1_0(self._file, header)


def write_packed(
    folder: Path,
    documents: Iterable[tuple[Sequence[int], Sequence[int]]],
    *,
    sequence_tokens: int,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Packs documents into `folder`: tokens.npy, doc_ids.npy, weights.npy and meta.json.

    Rows keep the order of the documents from window to window and are shuffled inside a window, so that any prefix of
    the rows is a fair sample of the lengths.

    Args:
        folder: the split's folder, made if absent.
        documents: (ids, weights in hundredths) of each, its closing token included.
        sequence_tokens: tokens in a row.
        tokenizer: the one that made the ids; its identity is recorded.

    Returns:
        What meta.json holds: rows, sequence_tokens, tokens, documents, pieces, tokenizer_sha256, vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [_GrowingArray(folder / f"{name}.npy", dtype, sequence_tokens) for name, dtype in _ARRAYS.items()]
    counts = {"rows": 0, "tokens": 0, "documents": 0, "pieces": 0}
    window: list[tuple[NDArray[np.int32], NDArray[np.uint8]]] = []
    window_tokens = 0

    def flush() -> None:
        for array, rows in zip(
            arrays, _rows_of_window(window, sequence_tokens, tokenizer.document_end_id), strict=True
        ):
            array.append(rows)
        counts["rows"] = arrays[0].rows
        window.clear()

    for ids, weights in documents:
        assert 0 < len(ids) == len(weights), "a document has at least its closing token, and a weight for each token"
        counts["documents"] += 1
        counts["tokens"] += len(ids)
        for start in range(0, len(ids), sequence_tokens):
            piece = slice(start, start + sequence_tokens)
            window.append((np.array(ids[piece], np.int32), np.array(weights[piece], np.uint8)))
            counts["pieces"] += 1
        window_tokens += len(ids)
        if window_tokens >= WINDOW_TOKENS:
            flush()
            window_tokens = 0
    if window:
        flush()
    for array in arrays:
        array.close()
    meta = {
        **counts,
        "sequence_tokens": sequence_tokens,
        "tokenizer_sha256": tokenizer.sha256,
        "vocabulary": tokenizer.size,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return meta


def _rows_of_window(
    window: Sequence[tuple[NDArray[np.int32], NDArray[np.uint8]]], sequence_tokens: int, padding_id: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
    """tokens_RT, doc_ids_RT (0 = padding) and weights_RT of one window."""
    rows = pack([len(ids) for ids, _ in window], sequence_tokens)
    order = np.random.Generator(np.random.PCG64(len(rows))).permutation(len(rows))
    tokens_RT = np.full((len(rows), sequence_tokens), padding_id, np.int32)
    doc_ids_RT = np.zeros((len(rows), sequence_tokens), np.int32)
    weights_RT = np.zeros((len(rows), sequence_tokens), np.uint8)
    for place, row in enumerate(order):
        start = 0
        for number, document in enumerate(sorted(rows[row]), start=1):
            ids, weights = window[document]
            end = start + len(ids)
            tokens_RT[place, start:end] = ids
            doc_ids_RT[place, start:end] = number
            weights_RT[place, start:end] = weights
            start = end
    return tokens_RT, doc_ids_RT, weights_RT


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows ready for a training step; torch tensors [B, T] on the CPU."""

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

    def real_tokens(self) -> "RealTokens":
        """The batch without its padding."""
        is_real_BT = self.doc_ids_BT > 0
        starts_M = (self.position_ids_BT[is_real_BT] == 0).nonzero().flatten()
        ends_M = torch.cat([starts_M[1:], is_real_BT.sum()[None]])
        return RealTokens(
            tokens_M=self.tokens_BT[is_real_BT],
            positions_M=self.position_ids_BT[is_real_BT],
            targets_M=self.targets_BT[is_real_BT],
            weights_M=self.weights_BT[is_real_BT],
            lengths=tuple((ends_M - starts_M).tolist()),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RealTokens:
    """The M real tokens of a batch in one line, row after row, document after document; torch tensors on the CPU."""

    tokens_M: torch.Tensor
    """int64 token ids."""
    positions_M: torch.Tensor
    """int64: 0 at the start of each document."""
    targets_M: torch.Tensor
    """int64: the next token of the same document, 0 where there is none."""
    weights_M: torch.Tensor
    """float32: loss weight of predicting the target."""
    lengths: tuple[int, ...]
    """Tokens of each document; they add up to M."""


class PackedRows:
    """The rows of one split folder, mapped from disk.

    Attributes:
        meta: the content of meta.json.
        sequence_tokens: tokens in a row (T).
        num_rows: rows in use.
        num_tokens: tokens in these rows, padding not counted.
    """

    def __init__(self, folder: Path, *, limit_tokens: int | None = None) -> None:
        """Opens a split; with `limit_tokens` only the first rows that together hold at least so many tokens (or all).

        Raises:
            UserError: the folder is absent, incomplete or damaged.
        """
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
            shape = (int(self.meta["rows"]), int(self.meta["sequence_tokens"]))
            arrays = [np.load(folder / f"{name}.npy", mmap_mode="r" if shape[0] else None) for name in _ARRAYS]
            if any(array.shape != shape for array in arrays):
                raise ValueError(f"arrays of shapes {[array.shape for array in arrays]}, meta.json says {shape}")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                wanted="packed rows (tokens.npy, doc_ids.npy, weights.npy, meta.json)",
                got=f"{folder}: {error}",
                next_step="Make it again with `python -m distill corpus` or `python -m instruct conversations`.",
            ) from error
        self._tokens_RT, self._doc_ids_RT, self._weights_RT = arrays
        self.num_rows, self.sequence_tokens = shape
        self.num_tokens = int(self.meta["tokens"])
        self._folder = folder
        if limit_tokens is not None and limit_tokens < self.num_tokens:
            self.num_rows, self.num_tokens = self._prefix(limit_tokens)

    def _prefix(self, limit_tokens: int) -> tuple[int, int]:
        tokens = rows = 0
        while tokens < limit_tokens:
            tokens += int((self._doc_ids_RT[rows] > 0).sum())
            rows += 1
        return rows, tokens

    def require(self, tokenizer: Tokenizer) -> None:
        """UserError when the rows were packed with another tokenizer."""
        if self.meta["tokenizer_sha256"] != tokenizer.sha256:
            raise UserError(
                wanted=f"rows packed with the tokenizer of {tokenizer.folder} (sha256 {tokenizer.sha256[:12]})",
                got=f"{self._folder} packed with another (sha256 {str(self.meta['tokenizer_sha256'])[:12]})",
                next_step="Pack the corpus again with the model's own tokenizer (`--tokenizer`).",
            )

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
