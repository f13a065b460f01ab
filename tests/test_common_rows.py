"""Readers of JSON lines: what is yielded, what is counted, and what stops the stage."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_tiny import write_rows

from common.errors import UserError
from common.rows import RowCounts, data_files, read_rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_rows_in_order_with_ids(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name, [{"text": "春", "id": "x"}, {"text": "夏\u2028秋", "more": [1]}])
    assert list(read_rows(path, fields=("text",))) == [
        {"text": "春", "id": "x"},
        {"text": "夏\u2028秋", "more": [1], "id": "a-2"},
    ]


@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda text: text.strip())))
def test_any_text_survives(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_rows(tmp_path_factory.getbasetemp() / "any.jsonl", ({"text": text} for text in texts))
    counts = RowCounts()
    assert [row["text"] for row in read_rows(path, fields={"text": str}, counts=counts)] == texts
    assert (counts.rows, counts.num_bad) == (len(texts), 0)


BAD: list[tuple[bytes, str]] = [
    (b'{"text": "\xff\xfe"}', "invalid UTF-8"),
    (b'{"text": ', "invalid JSON"),
    (b"[1, 2]", "not a JSON object"),
    (b"{}", "no field text"),
    (b'{"text": null}', "no field text"),
    (b'{"text": 5}', "field text is not text"),
    (b'{"text": ""}', "empty text"),
    (b'{"text": " \\n\\u3000"}', "empty text"),
    (b'{"text": "\\ud83d"}', "invalid Unicode (a lone surrogate)"),
    (b'{"text": "a", "id": "\\udc00"}', "invalid Unicode (a lone surrogate)"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_bad_rows_are_counted_and_left_out(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 60 + line + b"\n" + b'{"text": "b"}\n' * 60)
    counts = RowCounts()
    assert len(list(read_rows(path, fields={"text": str}, counts=counts))) == 120
    assert (counts.rows, counts.bad, counts.first_bad) == (121, {reason: 1}, [f"a.jsonl:61: {reason}"])


def test_too_many_bad_rows_name_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 90 + b'{"text": ""}\n' * 5 + b"{\n")
    with pytest.raises(UserError) as caught:
        list(read_rows(path, fields=("text",)))
    assert "6 of 96 (a.jsonl:91: empty text; a.jsonl:92: empty text; a.jsonl:93: empty text)" in str(caught.value)
    assert len(list(read_rows(path, fields=("text",), max_bad_share=0.07))) == 90


def test_the_share_counts_over_all_files(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "good.jsonl", ({"text": "a"} for _ in range(100)))
    bad = write_rows(tmp_path / "bad.jsonl", [{"text": ""}])
    counts = RowCounts()
    assert len(list(read_rows([bad, good], fields=("text",), counts=counts))) == 100
    assert counts.first_bad == ["bad.jsonl:1: empty text"]


def test_the_caller_can_count_a_row_as_bad(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ({"text": str(number)} for number in range(3)))
    counts = RowCounts()
    with pytest.raises(UserError, match=r"1 of 3 \(a\.jsonl:2: is one\)"):
        for row in read_rows(path, fields=("text",), counts=counts):
            if row["text"] == "1":
                counts.add_bad("is one")


def test_lists_and_several_fields(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"messages": [{}], "a": 0}, {"messages": [], "a": 0}, {"messages": "x", "a": 0}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    counts = RowCounts()
    read = list(read_rows(path, fields={"messages": list, "a": int}, counts=counts, max_bad_share=1))
    assert [row["id"] for row in read] == ["a-1"]
    assert counts.bad == {"empty messages": 1, "field messages is not a list": 1}


def test_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    counts = RowCounts()
    assert [row["text"] for row in read_rows(path, fields=("text",), counts=counts)] == ["a", "b"]
    assert counts.rows == 2


def test_files_that_are_missing_truncated_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(read_rows(tmp_path / "absent.jsonl", fields=("text",)))
    with pytest.raises(UserError, match=r"wanted a \.jsonl or \.jsonl\.gz file"):
        list(read_rows(tmp_path / "a.csv", fields=("text",)))

    whole = gzip.compress(json.dumps({"text": "春" * 2000}).encode() + b"\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(UserError, match="wanted a whole gzip file"):
        list(read_rows(tmp_path / "cut.jsonl.gz", fields=("text",)))
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    with pytest.raises(UserError, match="wanted a whole gzip file"):
        list(read_rows(tmp_path / "plain.jsonl.gz", fields=("text",)))
    (tmp_path / "broken.jsonl.gz").write_bytes(whole[:20] + b"\0\0\0" + whole[23:])
    with pytest.raises(UserError, match="wanted a whole gzip file"):
        list(read_rows(tmp_path / "broken.jsonl.gz", fields=("text",)))

    (tmp_path / "cut.jsonl").write_bytes(b'{"text": "a"}\n' * 500 + b'{"text": "')
    with pytest.raises(UserError, match="ends in the middle"):
        list(read_rows(tmp_path / "cut.jsonl", fields=("text",)))


def test_data_files(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "text.jsonl.gz", [])
    assert data_files(tmp_path, "text") == [file]
    assert data_files(tmp_path / "other.jsonl", "text") == [tmp_path / "other.jsonl"]
    with pytest.raises(UserError, match="neither"):
        data_files(tmp_path, "conversations")
