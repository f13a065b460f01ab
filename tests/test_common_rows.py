"""Readers of JSON lines: what is yielded, what is counted, and what stops the stage."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from hypothesis import example, given
from hypothesis import strategies as st
from text_tiny import write_rows

import common.rows
from common.errors import InputError
from common.rows import RowCounts, data_files, parse, raw_rows, read_rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_rows_in_order_with_ids(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name, [{"text": "春", "id": "x"}, {"text": "夏\u2028秋", "more": [1]}])
    assert list(read_rows(path, fields=("text",))) == [
        {"text": "春", "id": "x"},
        {"text": "夏\u2028秋", "more": [1], "id": "a-2"},
    ]


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1).filter(
            lambda text: text.strip()
        )
    )
)
@example(texts=["\\u0000", "a\\\\u0000"])
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
    (b'{"text": "a\\u0000b"}', "a NUL character"),
    (b'{"text": "a\0b"}', "invalid JSON"),
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
    first = "a.jsonl:91: empty text; a.jsonl:92: empty text; a.jsonl:93: empty text"
    with refuses("wrong-format", got=f"6 of 96 ({first})"):
        list(read_rows(path, fields=("text",)))
    assert len(list(read_rows(path, fields=("text",), max_bad_share=0.07))) == 90


@pytest.mark.parametrize(
    ("rows", "bad", "share", "stops"),
    [
        (100_000, 1_100, 0.01, False),  # the rest may be good
        (100_000, 10_000, 0.01, False),
        (100_000, 10_001, 0.01, True),
        (99_999, 99_999, 0.01, False),
        (100_000, 1, 0.0, True),  # no later row can correct it
        (100_000, 100_000, 0.2, False),
    ],
)
def test_bad_rows_stop_early_only_when_they_are_far_too_many(rows: int, bad: int, share: float, stops: bool) -> None:
    counts = RowCounts(rows=rows, bad={"empty text": bad}, first_bad=["a:1: empty text"])
    if stops:
        with refuses("wrong-format", wanted=f"{share:.2%}", got=f"{bad} of {rows}") as found:
            counts.check_early(share)
        assert isinstance(found[0], InputError)
    else:
        counts.check_early(share)


def test_the_share_counts_over_all_files(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "good.jsonl", ({"text": "a"} for _ in range(100)))
    bad = write_rows(tmp_path / "bad.jsonl", [{"text": ""}])
    counts = RowCounts()
    assert len(list(read_rows([bad, good], fields=("text",), counts=counts))) == 100
    assert counts.first_bad == ["bad.jsonl:1: empty text"]


def test_the_caller_can_count_a_row_as_bad(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ({"text": str(number)} for number in range(3)))
    counts = RowCounts()
    with refuses("wrong-format", got="1 of 3 (a.jsonl:2: is one)"):
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
    with refuses("not-found", wanted="absent.jsonl"):
        list(read_rows(tmp_path / "absent.jsonl", fields=("text",)))
    (tmp_path / "a.csv").touch()
    with refuses("wrong-format", wanted=".jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt", got="a.csv"):
        list(read_rows(tmp_path / "a.csv", fields=("text",)))

    whole = gzip.compress(json.dumps({"text": "春" * 2000}).encode() + b"\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    with refuses("damaged", wanted="cut.jsonl.gz"):
        list(read_rows(tmp_path / "cut.jsonl.gz", fields=("text",)))
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    with refuses("damaged", wanted="plain.jsonl.gz"):
        list(read_rows(tmp_path / "plain.jsonl.gz", fields=("text",)))
    (tmp_path / "broken.jsonl.gz").write_bytes(whole[:20] + b"\0\0\0" + whole[23:])
    with refuses("damaged", wanted="broken.jsonl.gz"):
        list(read_rows(tmp_path / "broken.jsonl.gz", fields=("text",)))

    (tmp_path / "cut.jsonl").write_bytes(b'{"text": "a"}\n' * 500 + b'{"text": "')
    with refuses("damaged", wanted="line 501 of cut.jsonl"):
        list(read_rows(tmp_path / "cut.jsonl", fields=("text",)))


def test_numbered_files_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("text-2.jsonl", "text-10.jsonl.gz", "text-2024-old.jsonl", "text-1.csv", "my-text-3.jsonl"):
        (tmp_path / name).touch()
    assert [path.name for path in data_files(tmp_path, "text")] == ["text-2.jsonl", "text-10.jsonl.gz"]
    (tmp_path / "text.jsonl").touch()
    assert [path.name for path in data_files(tmp_path, "text")] == ["text.jsonl"]


def test_data_files(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "text.jsonl.gz", [])
    assert data_files(tmp_path, "text") == [file]
    assert data_files(tmp_path / "other.jsonl", "text") == [tmp_path / "other.jsonl"]
    with refuses("not-found", wanted="conversations.jsonl"):
        data_files(tmp_path, "conversations")


# --- other kinds ------------------------------------------------------------------------------------------------------

ROWS = [{"id": f"r{number}", "text": f"{number}番目の文です。"} for number in range(50)]


def other_kind(folder: Path, kind: str) -> Path:
    import pyarrow
    import pyarrow.parquet

    path = folder / f"a{kind}"
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if kind == ".jsonl.zst":
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(data)
    elif kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=7)
    else:
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_kind_gives_the_same_rows_from_any_place_on(tmp_path: Path, kind: str) -> None:
    path = other_kind(tmp_path, kind)
    assert list(read_rows(path, fields={"text": str})) == ROWS
    for after in (0, 1, 13, 49, 50):
        rest = [(number, parse(raw, path.name, number, {"text": str})) for number, raw in raw_rows(path, after=after)]
        assert rest == [(number + 1, ROWS[number]) for number in range(after, 50)]


def test_a_text_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_bytes("\ufeff一行目\n\n二行目\n".encode())
    (tmp_path / "empty.txt").write_bytes(b" \n")
    (tmp_path / "sjis.txt").write_bytes("春夏".encode("shift_jis"))
    counts = RowCounts()
    files = sorted(tmp_path.glob("*.txt"))
    rows = list(read_rows(files, fields={"text": str}, counts=counts, max_bad_share=1))
    assert rows == [{"text": "一行目\n\n二行目\n", "id": "novel-1"}]
    assert counts.bad == {"empty text": 1, "invalid UTF-8": 1} and counts.rows == 3


@pytest.mark.parametrize("kind", [".jsonl.zst", ".parquet"])
def test_truncated_files_of_other_kinds(tmp_path: Path, kind: str) -> None:
    whole = other_kind(tmp_path, kind).read_bytes()
    for share in (0.5, 0.95):
        (tmp_path / f"cut{kind}").write_bytes(whole[: int(len(whole) * share)])
        with refuses("damaged", wanted=f"cut{kind}"):
            list(read_rows(tmp_path / f"cut{kind}", fields=("text",)))


def test_a_line_over_the_limit_is_bad_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.rows, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "a.jsonl"
    lines = [{"text": "a"}, {"text": "x" * 2_500_000}, {"text": "b"}, {"text": "y" * (2**20 - 13)}, {"text": "c"}]
    path.write_text("\n".join(map(json.dumps, lines)))  # the last line has no end, and the fourth ends at the limit
    counts = RowCounts()
    found = [row["text"][0] for row in read_rows(path, fields=("text",), counts=counts, max_bad_share=1)]
    assert found == ["a", "b", "y", "c"]
    assert counts.first_bad == ["a.jsonl:2: a row of more than 1 MiB"]


def test_counts_of_pieces_add_up() -> None:
    one = RowCounts(rows=5, bad={"x": 1}, first_bad=["a:1: x"])
    one.merge(RowCounts(rows=7, bad={"x": 1, "y": 2}, first_bad=["a:7: x", "a:8: y", "a:9: y"]))
    assert (one.rows, one.bad, one.num_bad) == (12, {"x": 2, "y": 2}, 4)
    assert one.first_bad == ["a:1: x", "a:7: x", "a:8: y"]


def test_a_file_cut_inside_a_character_ends_in_the_middle(tmp_path: Path) -> None:
    whole = "".join(json.dumps({"text": "春夏秋冬"}, ensure_ascii=False) + "\n" for _ in range(3)).encode()
    for cut in range(len(whole) - 20, len(whole) - 1):
        (tmp_path / "cut.jsonl").write_bytes(whole[:cut])
        with refuses("damaged", wanted="line 3 of cut.jsonl"):
            list(read_rows(tmp_path / "cut.jsonl", fields={"text": str}, max_bad_share=1))


def test_tables_with_other_ids_and_other_columns(tmp_path: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    table = [{"id": moment, "content": "春"}, {"id": None, "content": "夏\0"}, {"id": None, "content": "秋"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "t.parquet")
    counts = RowCounts()
    found = list(read_rows(tmp_path / "t.parquet", fields={"content": str}, counts=counts, max_bad_share=1))
    assert [(row["id"], row["content"]) for row in found] == [("2026-01-02 03:04:05", "春"), ("t-3", "秋")]
    assert counts.bad == {"a NUL character": 1}
