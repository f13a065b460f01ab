"""Documents to packed rows on disk, streamed window by window.

Documents longer than a row are cut into consecutive pieces; each piece is a document of its own.

Shape suffixes: T tokens in a row, R rows of the split.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.disk import replace_text
from common.tokenizer import Tokenizer

FULL_WEIGHT = 100
"""The loss weight 1, in hundredths."""
ARRAYS: dict[str, np.dtype[Any]] = {"tokens": np.dtype("<i4"), "doc_ids": np.dtype("<i4"), "weights": np.dtype("u1")}
"""The .npy files and their number formats; each is [R, T]. doc_ids count from 1 inside a row, 0 is padding."""
LABELS = "labels.npy"
"""The file of the tokens of each label in each row [R, labels], in a split of labelled documents."""
WINDOW_TOKENS = 2**24
"""Tokens that are packed together: enough rows for a tight fit, at 5 bytes a token (80 MiB) of memory."""
_PROGRESS_FILE = "progress.json"

Document = tuple[Sequence[int], Sequence[int]] | tuple[Sequence[int], Sequence[int], str | None]
"""Ids, weights in hundredths, and perhaps a label."""
Piece = tuple[NDArray[np.int32], NDArray[np.uint8], int]
"""Ids and weights of a document, or of a part of one, of at most a row, and the place of its label; -1 without one."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit, longest first: which documents of 1 to `capacity` tokens share a row of that many.

    Returns document indices, one list per row; every index once.
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

    def __init__(self, path: Path, dtype: np.dtype[Any], columns: int, *, rows: int) -> None:
        """Open the file behind its first `rows` rows, which an earlier start wrote; the rest is cut off."""
        self._file: BinaryIO = path.open("rb+" if rows else "wb+")
        self._dtype, self._columns, self.rows = dtype, columns, rows
        self._write_header()
        self._data_start = self._file.tell()
        self._file.truncate(self._data_start + rows * columns * dtype.itemsize)
        self._file.seek(0, os.SEEK_END)

    def append(self, rows: NDArray[Any]) -> None:
        assert rows.dtype == self._dtype and rows.shape[1] == self._columns
        self._file.write(rows.tobytes())
        self.rows += len(rows)

    def flush(self) -> None:
        """Every row is on the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())

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
    documents: Iterable[Document | None] | Callable[[int], Iterable[Document | None]],
    *,
    sequence_tokens: int,
    tokenizer: Tokenizer,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """Pack documents into `folder`: tokens.npy, doc_ids.npy, weights.npy and meta.json; with labels also labels.npy.

    Rows keep the order of the documents from window to window and are shuffled inside a window, so that any prefix of
    the rows is a fair sample of the lengths. Complete windows of a killed start are kept.

    Args:
        documents: (ids, weights in hundredths) of each, its closing token included, and optionally its label, one of
            `labels`; None ends a window; or a function that gives those behind the first n.
        tokenizer: the one that made the ids; its identity is recorded.
        labels: names whose tokens are counted in each row [R, labels].

    Returns:
        What meta.json holds: rows, sequence_tokens, tokens, documents, pieces, tokenizer_sha256, vocabulary, and
        labels, the tokens by label, in the order of the columns of labels.npy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress_file = folder / _PROGRESS_FILE
    fixed = {"sequence_tokens": sequence_tokens, "tokenizer_sha256": tokenizer.sha256, "vocabulary": tokenizer.size}
    meta: dict[str, Any] = {"rows": 0, "tokens": 0, "documents": 0, "pieces": 0, **fixed}
    meta["labels"] = dict.fromkeys(labels, 0)
    if progress_file.is_file():
        meta = json.loads(progress_file.read_text())
    arrays = [
        _GrowingArray(folder / f"{name}.npy", dtype, sequence_tokens, rows=meta["rows"])
        for name, dtype in ARRAYS.items()
    ]
    if labels:
        arrays.append(_GrowingArray(folder / LABELS, np.dtype("<i4"), len(labels), rows=meta["rows"]))
    rest = documents(meta["documents"]) if callable(documents) else islice(documents, meta["documents"], None)
    for window in _windows(rest, sequence_tokens, meta):
        packed = _rows_of_window(window, sequence_tokens, tokenizer.document_end_id, len(labels))
        for array, rows in zip(arrays, packed, strict=False):  # without labels there is no array for them
            array.append(rows)
            array.flush()
        meta["rows"] = arrays[0].rows
        replace_text(progress_file, json.dumps(meta))
    for array in arrays:
        array.close()
    replace_text(folder / "meta.json", json.dumps(meta, indent=1, ensure_ascii=False) + "\n")
    progress_file.unlink(missing_ok=True)
    return meta


def _windows(documents: Iterable[Document | None], sequence_tokens: int, meta: dict[str, Any]) -> Iterator[list[Piece]]:
    """The pieces of the documents, about WINDOW_TOKENS at a time; `meta` counts those that were yielded."""
    window: list[Piece] = []
    counts: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    places = {label: place for place, label in enumerate(meta["labels"])}

    def counted() -> list[Piece]:
        for name, count in counts.items():
            meta[name] += count
        meta["labels"] = {label: tokens + labels[label] for label, tokens in meta["labels"].items()}
        counts.clear()
        labels.clear()
        return window

    for document in documents:
        if document is None:
            if window:
                yield counted()
                window = []
            continue
        ids, weights, *label = document
        assert 0 < len(ids) == len(weights), "a document has at least its closing token, and a weight for each token"
        starts = range(0, len(ids), sequence_tokens)
        counts.update(documents=1, tokens=len(ids), pieces=len(starts))
        name = label[0] if label else None
        if name is not None:
            labels[name] += len(ids)
        for start in starts:
            piece = slice(start, start + sequence_tokens)
            place = -1 if name is None else places[name]
            window.append((np.array(ids[piece], np.int32), np.array(weights[piece], np.uint8), place))
        if counts["tokens"] >= WINDOW_TOKENS:
            yield counted()
            window = []
    if window:
        yield counted()


def _rows_of_window(
    window: Sequence[Piece], sequence_tokens: int, padding_id: int, num_labels: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """tokens_RT, doc_ids_RT (0 = padding), weights_RT and the tokens of each label labels_RL of one window."""
    rows = pack([len(ids) for ids, _, _ in window], sequence_tokens)
    order = np.random.Generator(np.random.PCG64(len(rows))).permutation(len(rows))
    tokens_RT = np.full((len(rows), sequence_tokens), padding_id, np.int32)
    doc_ids_RT = np.zeros((len(rows), sequence_tokens), np.int32)
    weights_RT = np.zeros((len(rows), sequence_tokens), np.uint8)
    labels_RL = np.zeros((len(rows), num_labels), np.int32)
    for place, row in enumerate(order):
        start = 0
        for number, document in enumerate(sorted(rows[row]), start=1):
            ids, weights, label = window[document]
            end = start + len(ids)
            tokens_RT[place, start:end] = ids
            doc_ids_RT[place, start:end] = number
            weights_RT[place, start:end] = weights
            if label >= 0:
                labels_RL[place, label] += len(ids)
            start = end
    return tokens_RT, doc_ids_RT, weights_RT, labels_RL
