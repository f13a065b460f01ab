"""Files that are not UTF-8 lines: refused with a command, which is run here where its program is there."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from errors_tiny import refuses

from common.errors import InputError
from common.rows import RowCounts, read_rows
from common.text_files import SNIFFED_BYTES

TEXTS = [
    f"{place}にある店は、朝{hour}時に開きます。" for hour, place in enumerate(("駅前", "港", "山の上", "川沿い") * 30)
]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)


def read(path: Path) -> list[str]:
    return [row["text"] for row in read_rows(path, fields={"text": str}, counts=RowCounts())]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LINES.encode("utf-16"), "UTF-16"),
        (LINES.encode("utf-16-le"), "UTF-16LE"),
        (LINES.encode("utf-16-be"), "UTF-16BE"),
        (LINES.encode("utf-32"), "UTF-32"),
        (LINES.encode("cp932"), "SHIFT_JIS"),
        (LINES.encode("euc_jp"), "EUC-JP"),
        (LINES.rstrip().encode("cp932"), "SHIFT_JIS"),
        (LINES.replace("\n", "\r").encode(), "CR alone"),
        (json.dumps([{"text": text} for text in TEXTS], indent=1).encode(), "one JSON array"),
        (json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False).encode("utf-8-sig"), "one JSON array"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_the_advice_makes_the_file_readable(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    path = tmp_path / f"talks.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with refuses("wrong-format", wanted="talks.jsonl", got=said) as caught:
        read(path)
    assert isinstance(caught[0], InputError)
    command = caught[0].next_step.removeprefix("convert it: ")
    program = next(word for word in ("iconv", "jq", "tr") if f"{word} " in command)
    if shutil.which(program) is None or (program == "jq" and content.startswith(b"\xef")):
        return  # jq takes no byte-order mark in older versions
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert read(tmp_path / f"converted-talks.{suffix}") == TEXTS


@pytest.mark.parametrize(("codec", "said"), [("cp932", "SHIFT_JIS"), ("euc_jp", "EUC-JP"), ("utf-16", "UTF-16")])
def test_a_text_file_in_another_encoding_is_a_bad_row_that_names_it(tmp_path: Path, codec: str, said: str) -> None:
    (tmp_path / "a.txt").write_bytes("".join(TEXTS).encode(codec))
    with refuses("wrong-format", got=f"invalid UTF-8, but {said}: iconv -f {said} -t UTF-8"):
        read(tmp_path / "a.txt")


def test_joined_files_with_marks_and_a_few_broken_rows_are_read(tmp_path: Path) -> None:
    marked = [("\ufeff" + "".join(json.dumps({"text": text}) + "\r\n" for text in TEXTS[:40])).encode()] * 3
    (tmp_path / "joined.jsonl").write_bytes(b"".join(marked))
    assert read(tmp_path / "joined.jsonl") == TEXTS[:40] * 3
    (tmp_path / "few.jsonl").write_bytes(LINES.encode() + '{"text": "駅"}\n'.encode("cp932"))
    assert read(tmp_path / "few.jsonl") == TEXTS
    (tmp_path / "one.jsonl").write_bytes(b'{"text": "a"}')
    assert read(tmp_path / "one.jsonl") == ["a"]
    (tmp_path / "none.jsonl").write_bytes(b"")
    assert read(tmp_path / "none.jsonl") == []


def test_names_that_mislead_get_true_advice(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl.gz").write_bytes(LINES.encode())
    with refuses("damaged", next_step="without .gz"):
        read(tmp_path / "plain.jsonl.gz")
    (tmp_path / "array.json").write_text("[]")
    with refuses("wrong-format", next_step="jq -c '.[]' array.json"):
        read(tmp_path / "array.json")


def test_lines_are_not_taken_for_an_array_or_for_old_line_ends(tmp_path: Path) -> None:
    (tmp_path / "row.jsonl").write_text('["text", "a"]\n' + LINES)
    assert read(tmp_path / "row.jsonl") == TEXTS  # one bad row in many
    for length in (SNIFFED_BYTES - 12, SNIFFED_BYTES - 11, SNIFFED_BYTES - 10):  # the sample ends around CR LF
        (tmp_path / "long.jsonl").write_bytes(b'{"text": "' + b"a" * (length - 1) + b'"}\r\n{"text": "b"}\r\n')
        assert read(tmp_path / "long.jsonl") == ["a" * (length - 1), "b"]
    (tmp_path / "short.jsonl").write_text('[{"text": "a"}, {"text": "b"}]\n')
    with refuses("wrong-format", got="one JSON array"):
        read(tmp_path / "short.jsonl")
