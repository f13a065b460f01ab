"""Packing against naive loops: the fit, the arrays on disk, positions and targets, and the order of the steps."""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from errors_tiny import refuses
from hypothesis import given, settings
from hypothesis import strategies as st

import common.packing.writing
from common.packing import PackedRows, pack, rows_of_step, write_packed

# What packing reads of a tokenizer.
TOKENIZER: Any = SimpleNamespace(document_end_id=7, sha256="a" * 64, size=1000, folder=Path("tokenizer"))
OTHER: Any = SimpleNamespace(sha256="b" * 64, folder=Path("other"))

CAPACITY = 16
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=60)
# Documents up to three rows long, weights in hundredths.
DOCUMENTS = st.lists(
    st.lists(st.tuples(st.integers(0, 999), st.sampled_from([0, 10, 100])), min_size=1, max_size=3 * CAPACITY),
    max_size=25,
)

Document = tuple[list[int], list[int]]


def naive_pack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Longest first, each into the fullest row that holds it; of equal rows the one that became so last."""
    rows: list[tuple[list[int], int, int]] = []  # documents, free tokens, when it became so
    for time, document in enumerate(sorted(range(len(lengths)), key=lambda index: -lengths[index])):
        fitting = [row for row in rows if row[1] >= lengths[document]]
        best = min(fitting, key=lambda row: (row[1], -row[2]), default=None)
        if best is None:
            rows.append(([document], capacity - lengths[document], time))
        else:
            rows[rows.index(best)] = ([*best[0], document], best[1] - lengths[document], time)
    return [row[0] for row in rows]


@given(lengths=LENGTHS)
def test_pack_is_best_fit_longest_first(lengths: list[int]) -> None:
    assert pack(lengths, CAPACITY) == naive_pack(lengths, CAPACITY)


@given(lengths=LENGTHS)
def test_pack_keeps_every_document_once_and_no_row_overflows(lengths: list[int]) -> None:
    rows = pack(lengths, CAPACITY)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[document] for document in row) <= CAPACITY for row in rows)


def test_pack_wastes_little_and_is_quick() -> None:
    source = random.Random(0)
    lengths = [min(1024, 1 + int(source.lognormvariate(5.5, 1))) for _ in range(20_000)]
    rows = pack(lengths, 1024)
    assert sum(lengths) / (1024 * len(rows)) > 0.995


def test_pack_of_a_long_row_is_exact() -> None:
    """Spaces beyond 64 bits."""
    assert pack([100_000, 31_072, 1, 131_071], 131_072) == [[3, 2], [0, 1]]


def pieces_of(documents: list[Document], capacity: int) -> list[Document]:
    return [
        (ids[start : start + capacity], weights[start : start + capacity])
        for ids, weights in documents
        for start in range(0, len(ids), capacity)
    ]


def pieces_in(folder: Path) -> list[Document]:
    """Naive reader: what each row holds between changes of the document id; padding must be at the end and empty."""
    tokens, doc_ids, weights = (np.load(folder / f"{name}.npy") for name in ("tokens", "doc_ids", "weights"))
    found: list[Document] = []
    for row in range(len(tokens)):
        seen: list[int] = []
        for column in range(tokens.shape[1]):
            number = int(doc_ids[row, column])
            if number == 0:
                assert (tokens[row, column:] == 7).all() and not weights[row, column:].any()
                assert not doc_ids[row, column:].any()
                break
            if not seen or seen[-1] != number:
                assert number == len(seen) + 1
                seen.append(number)
                found.append(([], []))
            found[-1][0].append(int(tokens[row, column]))
            found[-1][1].append(int(weights[row, column]))
    return found


@given(raw=DOCUMENTS, window=st.sampled_from([1, 40, 2**22]))
@settings(max_examples=60)
def test_every_piece_is_written_once(raw: list[list[tuple[int, int]]], window: int) -> None:
    documents = [([token for token, _ in one], [weight for _, weight in one]) for one in raw]
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.packing.writing, "WINDOW_TOKENS", window)
        folder = Path(temporary) / "train"
        meta = write_packed(folder, iter(documents), sequence_tokens=CAPACITY, tokenizer=TOKENIZER)
        assert sorted(pieces_in(folder)) == sorted(pieces_of(documents, CAPACITY))
        assert json.loads((folder / "meta.json").read_text()) == meta
        assert meta == {
            "rows": len(np.load(folder / "tokens.npy")),
            "sequence_tokens": CAPACITY,
            "tokens": sum(len(ids) for ids, _ in documents),
            "documents": len(documents),
            "pieces": len(pieces_of(documents, CAPACITY)),
            "tokenizer_sha256": "a" * 64,
            "vocabulary": 1000,
            "labels": {},
        }
        dtypes = [np.load(folder / f"{name}.npy").dtype for name in ("tokens", "doc_ids", "weights")]
        assert dtypes == [np.int32, np.int32, np.uint8]
        rows = PackedRows(folder)
        assert (rows.num_rows, rows.num_tokens, rows.sequence_tokens) == (meta["rows"], meta["tokens"], CAPACITY)


def test_windows_keep_the_order_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.packing.writing, "WINDOW_TOKENS", 100)
    documents = [([index] * 10, [100] * 10) for index in range(100)]
    write_packed(tmp_path, documents, sequence_tokens=20, tokenizer=TOKENIZER)
    windows = np.load(tmp_path / "tokens.npy").reshape(10, -1) // 10
    assert all((window == index).all() for index, window in enumerate(windows))


def written(folder: Path, *, sequence_tokens: int = CAPACITY) -> PackedRows:
    source = random.Random(1)
    documents: list[Document] = []
    for _ in range(40):
        length = source.randrange(1, 2 * sequence_tokens)
        documents.append(
            ([source.randrange(1000) for _ in range(length)], [source.choice([0, 10, 100]) for _ in range(length)])
        )
    write_packed(folder, documents, sequence_tokens=sequence_tokens, tokenizer=TOKENIZER)
    return PackedRows(folder)


def test_batch_against_a_naive_loop(tmp_path: Path) -> None:
    rows = written(tmp_path)
    tokens, doc_ids, weights = (np.load(tmp_path / f"{name}.npy") for name in ("tokens", "doc_ids", "weights"))
    chosen = [3, *range(rows.num_rows), 3]
    assert ((doc_ids == 0).sum(axis=1) > 1).any(), "some row must end in padding"
    batch = rows.batch(chosen)
    valid = 0
    for place, row in enumerate(chosen):
        position = 0
        for column in range(CAPACITY):
            starts = column == 0 or doc_ids[row, column] != doc_ids[row, column - 1]
            position = 0 if starts else position + 1
            has_target = (
                column + 1 < CAPACITY and doc_ids[row, column + 1] == doc_ids[row, column] and doc_ids[row, column] > 0
            )
            target = tokens[row, column + 1] if has_target else 0
            weight = weights[row, column + 1] / 100 if has_target else 0.0
            valid += weight > 0
            got = (
                int(batch.tokens_BT[place, column]),
                int(batch.doc_ids_BT[place, column]),
                int(batch.position_ids_BT[place, column]),
                int(batch.targets_BT[place, column]),
                float(batch.weights_BT[place, column]),
            )
            want = (tokens[row, column], doc_ids[row, column], position, target, np.float32(weight))
            assert got == tuple(value.item() if isinstance(value, np.generic) else value for value in want)
    assert batch.num_valid_tokens == valid
    assert batch.tokens_BT.dtype == batch.position_ids_BT.dtype == batch.targets_BT.dtype == torch.int64
    assert batch.weights_BT.dtype == torch.float32


def test_limit_takes_the_shortest_prefix(tmp_path: Path) -> None:
    whole = written(tmp_path)
    per_row = (np.load(tmp_path / "doc_ids.npy") > 0).sum(axis=1)
    for limit in (1, int(per_row[0]), int(per_row[0]) + 1, whole.num_tokens - 1):
        rows = PackedRows(tmp_path, limit_tokens=limit)
        expected = next(count for count in range(1, len(per_row) + 1) if per_row[:count].sum() >= limit)
        assert (rows.num_rows, rows.num_tokens) == (expected, per_row[:expected].sum())
    for limit in (whole.num_tokens, 10**9):
        assert PackedRows(tmp_path, limit_tokens=limit).num_rows == whole.num_rows


def test_a_prefix_is_a_fair_sample_of_lengths(tmp_path: Path) -> None:
    """Longest first would put the long documents into the first rows."""
    source = random.Random(0)
    documents = [([1] * length, [100] * length) for length in (source.randrange(1, 65) for _ in range(4000))]
    write_packed(tmp_path, documents, sequence_tokens=64, tokenizer=TOKENIZER)
    per_row = np.load(tmp_path / "doc_ids.npy").max(axis=1)
    assert abs(per_row[: len(per_row) // 5].mean() - per_row.mean()) < 0.15


# --- steps ------------------------------------------------------------------------------------------------------------


@given(num_rows=st.integers(1, 30), rows_per_step=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=50)
def test_steps_cut_a_sequence_of_shuffled_epochs(num_rows: int, rows_per_step: int, seed: int) -> None:
    steps = [
        rows_of_step(step, rows_per_step=rows_per_step, num_rows=num_rows, seed=seed)
        for step in range(2 + 3 * num_rows // rows_per_step)
    ]
    assert all(len(step) == rows_per_step for step in steps)
    order = [row for step in steps for row in step]
    for start in range(0, len(order) - num_rows + 1, num_rows):
        assert sorted(order[start : start + num_rows]) == list(range(num_rows))
    # Steps of any other size walk through the same order.
    by_one = [rows_of_step(place, rows_per_step=1, num_rows=num_rows, seed=seed)[0] for place in range(len(order))]
    assert by_one == order


def test_epochs_and_seeds_differ() -> None:
    def epoch(number: int, seed: int) -> list[int]:
        return rows_of_step(number, rows_per_step=50, num_rows=50, seed=seed)

    assert len({tuple(epoch(number, seed)) for number in range(3) for seed in range(3)}) == 9
    assert epoch(0, 0) != list(range(50))


# --- what is wrong on disk --------------------------------------------------------------------------------------------


def test_other_tokenizer_is_refused(tmp_path: Path) -> None:
    rows = written(tmp_path)
    rows.require(TOKENIZER)
    with refuses("mismatch", wanted="tokenizer", got=str(tmp_path)):
        rows.require(OTHER)


def test_absent_truncated_or_contradicting_files(tmp_path: Path) -> None:
    with refuses("not-found", got=str(tmp_path / "absent")):
        PackedRows(tmp_path / "absent")
    written(tmp_path)
    whole = (tmp_path / "tokens.npy").read_bytes()
    (tmp_path / "tokens.npy").write_bytes(whole[: len(whole) // 2])
    with refuses("damaged", got=str(tmp_path)):
        PackedRows(tmp_path)
    (tmp_path / "tokens.npy").write_bytes(whole)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"rows": meta["rows"] + 1}))
    with refuses("damaged", got="meta.json"):
        PackedRows(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with refuses("damaged", got=str(tmp_path)):
        PackedRows(tmp_path)


def test_an_empty_split_is_readable(tmp_path: Path) -> None:
    assert write_packed(tmp_path, [], sequence_tokens=CAPACITY, tokenizer=TOKENIZER)["rows"] == 0
    rows = PackedRows(tmp_path, limit_tokens=10)
    assert (rows.num_rows, rows.num_tokens) == (0, 0)


def test_a_killed_writer_goes_on_behind_its_last_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.packing.writing, "WINDOW_TOKENS", 100)
    documents = [
        ([number % 900 + 1] * (1 + number % 17), [100] * (1 + number % 17), "ab"[number % 2]) for number in range(90)
    ]
    whole = write_packed(tmp_path / "whole", documents, sequence_tokens=CAPACITY, tokenizer=TOKENIZER, labels="ab")
    assert whole["labels"] == {label: sum(len(ids) for ids, _, of in documents if of == label) for label in ("a", "b")}
    asked: list[int] = []

    def after(number: int, *, dies_at: int) -> Iterator[tuple[list[int], list[int], str]]:
        asked.append(number)
        for place, document in enumerate(documents[number:], start=number):
            if place == dies_at:
                raise KeyboardInterrupt
            yield document

    for dies_at in (40, 41, 70):
        with pytest.raises(KeyboardInterrupt):
            write_packed(
                tmp_path / "cut",
                lambda n, at=dies_at: after(n, dies_at=at),
                sequence_tokens=CAPACITY,
                tokenizer=TOKENIZER,
                labels="ab",
            )
    again = write_packed(
        tmp_path / "cut", lambda n: after(n, dies_at=-1), sequence_tokens=CAPACITY, tokenizer=TOKENIZER, labels="ab"
    )
    assert again == whole
    assert asked[0] == 0 and 0 < asked[1] <= 40 and asked[1] == asked[2] < asked[3] <= 70
    for name in ("tokens.npy", "doc_ids.npy", "weights.npy", "meta.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "cut" / "progress.json").exists()


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.sampled_from("abc")), min_size=1, max_size=40),
    limit=st.integers(1, 400),
    steps=st.integers(1, 30),
    rows_per_step=st.integers(1, 5),
)
def test_drawn_tokens_are_those_of_the_rows_of_all_steps(
    lengths: list[tuple[int, str]], limit: int, steps: int, rows_per_step: int
) -> None:
    # Ids tell the label: 100, 200 or 300.
    documents = [([100 * (1 + "abc".index(label))] * length, [100] * length, label) for length, label in lengths]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "train"
        write_packed(folder, documents, sequence_tokens=CAPACITY, tokenizer=TOKENIZER, labels="abc")
        rows = PackedRows(folder, limit_tokens=limit)
        found = Counter[int]()
        for step in range(steps):
            drawn = rows_of_step(step, rows_per_step=rows_per_step, num_rows=rows.num_rows, seed=3)
            for batch in rows.micro_batches(drawn, 2):
                found.update(batch.tokens_M.tolist())
        counted = rows.drawn_tokens(steps=steps, rows_per_step=rows_per_step, seed=3)
        assert counted == {label: found[100 * (1 + place)] for place, label in enumerate("abc")}
