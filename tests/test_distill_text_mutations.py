"""Damaged text files of every kind: refused with one clear error or counted row by row, never anything else."""

import gzip
import json
import random
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from text_tiny import TEXTS, mutated

from common.duplicates import NearDuplicatesConfig
from common.errors import UserError
from common.rows import raw_rows
from distill.text.cleaning import Cleaner, CleaningConfig, TextBatch

KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
ROWS = [
    {"id": f"d{number}", "text": f"{number}番。{TEXTS[number % len(TEXTS)]}", "answers": [[0, 2]]}
    for number in range(24)
]


def whole(kind: str) -> bytes:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if kind == ".txt":
        return "\n".join(str(row["text"]) for row in ROWS).encode()
    if kind == ".jsonl.gz":
        return gzip.compress(data)
    if kind == ".jsonl.zst":
        return pyarrow.Codec("zstd").compress(data, asbytes=True)
    if kind == ".parquet":
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink, row_group_size=8)
        return sink.getvalue().to_pybytes()
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    data, path = whole(kind), tmp_path / f"text{kind}"
    cleaner = Cleaner(CleaningConfig(redact=True), near_duplicates=NearDuplicatesConfig(bands=4))
    path.write_bytes(data)
    assert (
        len(cleaner(TextBatch(source="s", file=path.name, rows=list(raw_rows(path)))).lines) > 0
    )  # and all is imported
    refused = kept = bad = 0
    for seed in range(200):
        path.write_bytes(mutated(data, random.Random(f"{kind}{seed}")))
        started = time.monotonic()
        try:
            rows = list(raw_rows(path))
            result = cleaner(TextBatch(source="s", file=path.name, rows=rows))
        except UserError as error:
            refused += 1
            assert str(error).count("\n") == 0 and str(error).startswith("wanted ")
        else:
            counts = result.counts
            assert counts.rows.rows == len(rows) == len(result.lines) + counts.rows.num_bad + counts.removed.total()
            assert all(json.loads(line)["text"].strip() for line in result.lines)
            kept += len(result.lines)
            bad += counts.rows.num_bad
        assert time.monotonic() - started < 10
    if kind in (".jsonl.gz", ".jsonl.zst", ".parquet"):
        assert refused > 100
    else:
        assert kept > 100 and bad > 100 if kind == ".jsonl" else kept + bad > 100
