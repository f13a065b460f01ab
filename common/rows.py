"""Readers of text files: JSON lines (plain, gzip, zstd), Parquet and plain text; bad rows are counted and named.

A row is bad when it is no UTF-8, no JSON object, or lacks a field that the caller needs, or holds it empty. A few bad
rows are left out and counted; more than a share of them is the user's mistake and stops the stage, and so does a file
that ends in the middle. Reading and parsing are apart: one process can read while others parse. Lines are read here,
because a library that reads JSON stops at the first broken line and cannot name it; tables are read by `datasets`.
This module knows no stage and what no field means.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from common.errors import InputError, UserError

Row = dict[str, Any]
"""One line's JSON object; `id` is always there (`<file>-<line>` where the file has none)."""
Raw = bytes | Row
"""A row as it was read: a line with its end, or a table's row. `parse` makes a Row of it."""

MAX_BAD_SHARE = 0.01
MAX_LINE_BYTES = 2**26
"""A longer line is a bad row and never held in memory."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
EARLY_ROWS, EARLY_FACTOR = 100_000, 10
"""Bad rows stop a stage before its last row when there are so many rows, and so many times the share allowed is bad."""
_NAMED_BAD_ROWS = 3
_TOO_LONG = b""  # stands for a line over the limit; a real line has at least its end


@dataclass(kw_only=True, slots=True)
class RowCounts:
    """What became of the rows that were read."""

    rows: int = 0
    """Rows read, good and bad; blank lines are none."""
    bad: dict[str, int] = field(default_factory=dict[str, int])
    """Bad rows by reason."""
    first_bad: list[str] = field(default_factory=list[str])
    """`file:line: reason` of the first few."""
    place: str = ""
    """`file:line` of the row that was read last."""

    @property
    def num_bad(self) -> int:
        return sum(self.bad.values())

    def add_bad(self, reason: str) -> None:
        """Counts the row that was read last as bad: for checks that only the reader's caller can make."""
        self.bad[reason] = self.bad.get(reason, 0) + 1
        if len(self.first_bad) < _NAMED_BAD_ROWS:
            self.first_bad.append(f"{self.place}: {reason}")

    def merge(self, later: "RowCounts") -> None:
        """Adds the counts of rows that come after these."""
        self.rows += later.rows
        for reason, count in later.bad.items():
            self.bad[reason] = self.bad.get(reason, 0) + count
        self.first_bad = (self.first_bad + later.first_bad)[:_NAMED_BAD_ROWS]

    def check(self, max_bad_share: float) -> None:
        """InputError when more than `max_bad_share` of the rows are bad."""
        if self.num_bad > max_bad_share * self.rows:
            raise InputError(
                wanted=f"at most {max_bad_share:.2%} bad rows",
                got=f"{self.num_bad} of {self.rows} ({'; '.join(self.first_bad)})",
                next_step="Mend or remove these rows, or raise max_bad_share.",
            )

    def check_early(self, max_bad_share: float) -> None:
        """As `check`, while rows are still to come: only when they would hardly bring the share below the limit."""
        if self.rows >= EARLY_ROWS and self.num_bad > EARLY_FACTOR * max_bad_share * self.rows:
            self.check(max_bad_share)


def data_files(source: Path, stem: str) -> list[Path]:
    """The files that `source` stands for: itself, or `<stem>.jsonl` or another known kind of `<stem>` in a folder.

    Several of them are called `<stem>-1.jsonl` and so on, and come in the order of their numbers.
    """
    if not source.is_dir():
        return [source]
    found = [source / f"{stem}{suffix}" for suffix in SUFFIXES if (source / f"{stem}{suffix}").is_file()]
    found = found or _numbered(source, stem)
    if not found:
        raise UserError(
            wanted=f"{stem}.jsonl or {stem}.jsonl.gz in {source}, or {stem}-1.jsonl and so on",
            got="none of these",
            next_step="Name the files themselves, or the folder that holds one of these.",
        )
    return found


def _numbered(folder: Path, stem: str) -> list[Path]:
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)({'|'.join(map(re.escape, SUFFIXES))})")
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found) if path.is_file()]


def read_rows(
    path: Path | Sequence[Path],
    *,
    fields: Iterable[str] | Mapping[str, type],
    counts: RowCounts | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
) -> Iterator[Row]:
    """Yields the good rows of one file or of several, in order.

    Args:
        path: files with one of `SUFFIXES`.
        fields: names that every row must hold, neither null nor empty; with a type where a mapping.
        counts: filled while reading.
        max_bad_share: bad rows allowed, as a share of all rows of all files, 0 to 1.

    Raises:
        UserError: a file is missing or of another kind; InputError: it is truncated, or at the end, too many bad rows.
    """
    counts = RowCounts() if counts is None else counts
    wanted: dict[str, type] = dict(fields) if isinstance(fields, Mapping) else dict.fromkeys(fields, object)
    for file in [path] if isinstance(path, Path) else path:
        for number, raw in raw_rows(file):
            counts.rows += 1
            counts.place = f"{printable(file.name)}:{number}"
            row = parse(raw, file.name, number, wanted)
            if isinstance(row, str):
                counts.add_bad(row)
            else:
                yield row
    counts.check(max_bad_share)


def raw_rows(path: Path, *, after: int = 0) -> Iterator[tuple[int, Raw]]:
    """Yields (number, row) of one file, unparsed; blank lines are left out, and numbers count from 1.

    Args:
        path: a file with one of `SUFFIXES`. A `.txt` file is one row.
        after: number of the last row that is already known; reading goes on behind it.

    Raises:
        UserError: the file is missing or of another kind; InputError: it ends in the middle.
    """
    if not path.is_file():
        raise UserError(wanted=f"the file {path}", got="no such file", next_step="Correct the path.")
    if not path.name.endswith(SUFFIXES):
        raise UserError(
            wanted=f"a file of the kind {', '.join(SUFFIXES)}",
            got=str(path),
            next_step="Write the text as JSON lines with such a name.",
        )
    if path.suffix == ".parquet":
        yield from _table(path, after)
    elif path.suffix == ".txt":
        if after == 0:
            yield 1, {"text": path.read_bytes()} if path.stat().st_size <= MAX_LINE_BYTES else _TOO_LONG
    else:
        for number, line in enumerate(_lines(path), start=1):
            if number > after and (not line or not line.isspace()):
                yield number, line


def parse(raw: Raw, file: str, number: int, fields: Mapping[str, type]) -> Row | str:
    """The row, or why it is bad.

    Args:
        raw: what `raw_rows` gave.
        file: name of its file.
        number: its number there.
        fields: names that it must hold, neither null nor empty, and their types.

    Raises:
        InputError: a last line that is cut off.
    """
    row = _object(raw, file, number)
    if isinstance(row, str):
        return row
    for name, kind in fields.items():
        value = row.get(name)
        if value is None:
            return f"no field {name}"
        if not isinstance(value, kind):
            return f"field {name} is not {'text' if kind is str else f'a {kind.__name__}'}"
        if value == [] or (isinstance(value, str) and not value.strip()):
            return f"empty {name}"
        if isinstance(value, str) and "\0" in value:
            return "a NUL character"
    identity = row.get("id")
    if identity is None:
        row["id"] = f"{printable(file).split('.')[0]}-{number}"
    elif not isinstance(identity, str | int):
        row["id"] = str(identity)  # a time stamp, bytes or NaN, which JSON has no words for
    return row


def printable(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def _object(raw: Raw, file: str, number: int) -> Row | str:
    if isinstance(raw, dict):
        return _decoded(raw)
    if raw == _TOO_LONG:
        return f"a row of more than {MAX_LINE_BYTES >> 20} MiB"
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not raw.endswith(b"\n"):
            raise InputError(
                wanted=f"a whole line {number} of {printable(file)}",
                got="the file ends in the middle of it",
                next_step="Copy or download the file again, or remove that line.",
            ) from error
        return "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else "invalid JSON"
    if not isinstance(row, dict):
        return "not a JSON object"
    if "\\u" in text:
        # JSON can spell what no text file should hold: half a character, and NUL.
        if _has_lone_surrogate(row):
            return "invalid Unicode (a lone surrogate)"
        if "\\u0000" in text and "\\u0000" in json.dumps(row):
            return "a NUL character"
    return row


def _decoded(row: Row) -> Row | str:
    """A table's row, or a text file's, whose bytes are text only if they are UTF-8."""
    text = row.get("text")
    if isinstance(text, bytes):
        try:
            row = row | {"text": text.decode("utf-8-sig")}
        except UnicodeDecodeError:
            return "invalid UTF-8"
    return row


def _lines(path: Path) -> Iterator[bytes]:
    """Every line with its end, `_TOO_LONG` for one over the limit."""
    try:
        with _opened(path) as file:
            while line := file.readline(MAX_LINE_BYTES):
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE_BYTES)
                    line = _TOO_LONG
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
        # A read error of the disk carries a number, what a decompressor says does not.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        kind = "zstd" if path.suffix == ".zst" else "gzip"
        raise InputError(
            wanted=f"a whole {kind} file {path}", got=str(error), next_step="Copy or download the file again."
        ) from error


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        import io

        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _table(path: Path, after: int) -> Iterator[tuple[int, Row]]:
    """Rows of a Parquet file, streamed by `datasets`."""
    from datasets import load_dataset
    from datasets.utils.logging import CRITICAL, set_verbosity

    set_verbosity(CRITICAL)  # it prints what it also raises
    try:
        rows = load_dataset("parquet", data_files={"rows": [str(path)]}, split="rows", streaming=True)
        for number, row in enumerate(rows.skip(after) if after else rows, start=after + 1):
            yield number, dict(row)
    except Exception as error:
        # pyarrow and datasets have many classes for a damaged table; what our own consumer raises passes through
        # the generator as GeneratorExit, which is no Exception.
        reason = str(error).strip().splitlines()
        raise UserError(
            wanted=f"a readable Parquet file {path}",
            got=f"{type(error).__name__}: {reason[0] if reason else ''}",
            next_step="Copy or download the file again.",
        ) from error


def _has_lone_surrogate(row: Row) -> bool:
    """JSON can spell half a character with an escape; UTF-8 cannot hold it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
