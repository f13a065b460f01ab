"""Readers of text files: JSON lines (plain, gzip, zstd), Parquet and plain text; bad rows are counted and named.

A row is bad if it is not UTF-8, not a JSON object, or a field that the caller needs is absent or empty. Bad rows are
skipped and counted; more than a share of them, or a truncated file, stops the stage. Reading and parsing are separate,
so that one process can read while others parse. Lines are read here, because a JSON library stops at the first broken
line and cannot name it; `datasets` reads tables. Independent of stages and of the meaning of fields.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from common.errors import InputError, UserError, damaged, not_found
from common.text_files import SNIFFED_BYTES, encoding_of, require_utf8_lines

Row = dict[str, Any]
"""The JSON object of one line. It always has an `id` (`<file>-<line>` if the file gives none)."""
Raw = bytes | Row
"""An unparsed row: a line with its line end, or the row of a table. `parse` makes a Row of it."""

MAX_BAD_SHARE = 0.01
MAX_LINE_BYTES = 2**26
"""A longer line is a bad row and is never held in memory."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
EARLY_ROWS, EARLY_FACTOR = 100_000, 10
"""From this number of rows on, this multiple of the allowed share of bad rows stops a stage before its last row."""
_NAMED_BAD_ROWS = 3
_AGAIN = "copy or download the file again"
_TOO_LONG = b""  # a line over the limit; a real line has at least its line end


@dataclass(kw_only=True, slots=True)
class RowCounts:
    """Counts of the rows that were read."""

    rows: int = 0
    """Rows read, good and bad, without blank lines."""
    bad: dict[str, int] = field(default_factory=dict[str, int])
    """Bad rows by reason."""
    first_bad: list[str] = field(default_factory=list[str])
    """`file:line: reason` of the first few."""
    place: str = ""
    """`file:line` of the last row read."""

    @property
    def num_bad(self) -> int:
        return sum(self.bad.values())

    def add_bad(self, reason: str) -> None:
        """Count the last row read as bad, for checks that only the caller of the reader can make."""
        self.bad[reason] = self.bad.get(reason, 0) + 1
        if len(self.first_bad) < _NAMED_BAD_ROWS:
            self.first_bad.append(f"{self.place}: {reason}")

    def merge(self, later: "RowCounts") -> None:
        """Add the counts of the rows that follow these."""
        self.rows += later.rows
        for reason, count in later.bad.items():
            self.bad[reason] = self.bad.get(reason, 0) + count
        self.first_bad = (self.first_bad + later.first_bad)[:_NAMED_BAD_ROWS]

    def check(self, max_bad_share: float) -> None:
        """Raise InputError if more than `max_bad_share` of the rows are bad."""
        if self.num_bad > max_bad_share * self.rows:
            wanted = f"at most {max_bad_share:.2%} bad rows"
            got = f"{self.num_bad} of {self.rows} ({'; '.join(self.first_bad)})"
            next_step = "correct or remove these rows, or raise max_bad_share"
            raise InputError("wrong-format", wanted=wanted, got=got, next_step=next_step)

    def check_early(self, max_bad_share: float) -> None:
        """As `check`, before the last row: only if later rows can hardly bring the share below the limit."""
        if self.rows >= EARLY_ROWS and self.num_bad > EARLY_FACTOR * max_bad_share * self.rows:
            self.check(max_bad_share)


def data_files(source: Path, stem: str) -> list[Path]:
    """`source` itself, or the files of a folder: `<stem>` with one of `SUFFIXES`, else `<stem>-1`, `<stem>-2` etc.

    UserError ("not-found") for a folder without such a file.
    """
    if not source.is_dir():
        return [source]
    pattern = re.compile(rf"{re.escape(stem)}(?:-(\d+))?({'|'.join(map(re.escape, SUFFIXES))})")
    matches = [(path, match) for path in source.iterdir() if (match := pattern.fullmatch(path.name)) and path.is_file()]
    plain = sorted((SUFFIXES.index(match[2]), path) for path, match in matches if match[1] is None)
    numbered = sorted((int(match[1]), path) for path, match in matches if match[1] is not None)
    if not matches:
        what = f"{stem}.jsonl or {stem}.jsonl.gz in {source}, or {stem}-1.jsonl and so on"
        next_step = "name the files themselves, or the folder that holds one of these"
        raise not_found(what, "none of these", next_step=next_step)
    return [path for _, path in plain or numbered]


def read_rows(
    path: Path | Sequence[Path],
    *,
    fields: Iterable[str] | Mapping[str, type],
    counts: RowCounts | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
) -> Iterator[Row]:
    """Yield the good rows of one file or of several, in order.

    Args:
        path: files with one of `SUFFIXES`.
        fields: names that every row must hold, neither null nor empty; a mapping also gives their types.
        counts: filled while reading.
        max_bad_share: bad rows allowed, as a share of all rows of all files, 0 to 1.

    Raises:
        UserError: a file is missing or has another suffix; InputError: a file is truncated, or, after the last row,
            too many rows are bad.
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
    """Yield (number, unparsed row) of one file from row `after` + 1 on; blank lines are skipped, a `.txt` is one row.

    Raises:
        UserError: the file is missing or has none of `SUFFIXES`; InputError: it is truncated.
    """
    if not path.is_file():
        raise not_found(f"the file {path}")
    if not path.name.endswith(SUFFIXES):
        wanted = f"a file of the kind {', '.join(SUFFIXES)}"
        next_step = "write the text as JSON lines into a file with such a name"
        if path.suffix == ".json":
            next_step = f"write a line for each object: jq -c '.[]' {path.name} > {path.stem}.jsonl"
        raise UserError("wrong-format", wanted=wanted, got=str(path), next_step=next_step)
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
    """The row `raw` of `raw_rows`, or the reason why it is bad; InputError ("damaged") for a truncated last line.

    `fields` are names that it must hold, neither null nor empty, and their types.
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
        row["id"] = str(identity)  # a time stamp, bytes or NaN, which JSON cannot hold
    return row


def printable(name: str) -> str:
    """The name of a file as text: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def _object(raw: Raw, file: str, number: int) -> Row | str:
    if isinstance(raw, dict):  # of a table or a `.txt` file
        try:
            return raw | {"text": raw["text"].decode("utf-8-sig")} if isinstance(raw.get("text"), bytes) else raw
        except UnicodeDecodeError:
            encoding = encoding_of(raw["text"][:SNIFFED_BYTES])
            return "invalid UTF-8" + (f", but {encoding}: iconv -f {encoding} -t UTF-8 converts it" if encoding else "")
    if raw == _TOO_LONG:
        return f"a row of more than {MAX_LINE_BYTES >> 20} MiB"
    try:
        text = raw.decode("utf-8-sig")  # files with a byte-order mark may have been joined
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not raw.endswith(b"\n"):
            wanted, got = f"a whole line {number} of {printable(file)}", "the file ends in the middle of it"
            raise InputError("damaged", wanted=wanted, got=got, next_step=_AGAIN) from error
        return "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else "invalid JSON"
    if not isinstance(row, dict):
        return "not a JSON object"
    if "\\u" in text:
        # An escape in JSON can spell half a surrogate pair, which UTF-8 cannot hold, and NUL.
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "invalid Unicode (a lone surrogate)"
        # Without pairs of backslashes: a text may spell the six characters of the escape.
        if "\\u0000" in text and "\\u0000" in json.dumps(row).replace(r"\\", ""):
            return "a NUL character"
    return row


def _lines(path: Path) -> Iterator[bytes]:
    """Every line with its line end; `_TOO_LONG` for a line over the limit."""
    try:
        with _opened(path) as file:
            require_utf8_lines(file.read(SNIFFED_BYTES), printable(path.name))
        with _opened(path) as file:
            while line := file.readline(MAX_LINE_BYTES):
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE_BYTES)
                    line = _TOO_LONG
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
        # A read error of the disk has a number, an error of a decompressor has none.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        wanted, next_step = f"a whole {'zstd' if path.suffix == '.zst' else 'gzip'} file {path}", _AGAIN
        if "not a gzip" in str(error).lower():
            next_step = "give it a name without .gz if it is not compressed, or download it again"
        elif "too much memory" in str(error).lower():
            next_step = f"decompress it: zstd -d --long=31 {path.name}"
        raise InputError("damaged", wanted=wanted, got=str(error), next_step=next_step) from error


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
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
        # pyarrow and datasets have many classes for a damaged table. What the consumer of this generator raises does
        # not pass here: it closes the generator with GeneratorExit, which is not an Exception.
        got = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise damaged(f"a readable Parquet file {path}", got) from error
