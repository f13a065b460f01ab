"""Readers of text files: `.jsonl` and `.jsonl.gz`, one JSON object a line, bad rows counted and named.

A row is bad when it is no UTF-8, no JSON object, or lacks a field that the caller needs, or holds it empty. A few bad
rows are left out and counted; more than a share of them is the user's mistake and stops the stage, and so does a file
that ends in the middle. This module knows no stage and what no field means.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError

Row = dict[str, Any]
"""One line's JSON object; `id` is always there (`<file>-<line>` where the file has none)."""

MAX_BAD_SHARE = 0.01
_SUFFIXES = (".jsonl", ".jsonl.gz")
_NAMED_BAD_ROWS = 3


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

    def check(self, max_bad_share: float) -> None:
        """UserError when more than `max_bad_share` of the rows are bad."""
        if self.num_bad > max_bad_share * self.rows:
            raise UserError(
                wanted=f"at most {max_bad_share:.2%} bad rows",
                got=f"{self.num_bad} of {self.rows} ({'; '.join(self.first_bad)})",
                next_step="Mend or remove these rows, or raise max_bad_share.",
            )


def data_files(source: Path, stem: str) -> list[Path]:
    """The files that `source` stands for: itself, or `<stem>.jsonl` or `<stem>.jsonl.gz` in a folder."""
    if not source.is_dir():
        return [source]
    found = [source / f"{stem}{suffix}" for suffix in _SUFFIXES if (source / f"{stem}{suffix}").is_file()]
    if not found:
        raise UserError(
            wanted=f"{stem}.jsonl or {stem}.jsonl.gz in {source}",
            got="neither",
            next_step="Name the files themselves, or the folder that holds one of these.",
        )
    return found


def read_rows(
    path: Path | Sequence[Path],
    *,
    fields: Iterable[str] | Mapping[str, type],
    counts: RowCounts | None = None,
    max_bad_share: float = MAX_BAD_SHARE,
) -> Iterator[Row]:
    """Yields the good rows of one file or of several, in order.

    Args:
        path: `.jsonl` or `.jsonl.gz` files.
        fields: names that every row must hold, neither null nor empty; with a type where a mapping.
        counts: filled while reading.
        max_bad_share: bad rows allowed, as a share of all rows of all files, 0 to 1.

    Raises:
        UserError: a file is missing, of another kind or truncated; at the end, too many bad rows.
    """
    counts = RowCounts() if counts is None else counts
    wanted: dict[str, type] = dict(fields) if isinstance(fields, Mapping) else dict.fromkeys(fields, object)
    for file in [path] if isinstance(path, Path) else path:
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            counts.rows += 1
            counts.place = f"{file.name}:{number}"
            row = _parse(line, file, number, wanted)
            if isinstance(row, str):
                counts.add_bad(row)
            else:
                yield row
    counts.check(max_bad_share)


def _lines(path: Path) -> Iterator[bytes]:
    if not path.name.endswith(_SUFFIXES):
        raise UserError(
            wanted="a .jsonl or .jsonl.gz file",
            got=str(path),
            next_step="Write the text as JSON lines with such a name.",
        )
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            yield from file
    except FileNotFoundError as error:
        raise UserError(wanted=f"the file {path}", got="no such file", next_step="Correct the path.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            wanted=f"a whole gzip file {path}", got=str(error), next_step="Copy or download the file again."
        ) from error


def _parse(line: bytes, path: Path, number: int, fields: Mapping[str, type]) -> Row | str:
    """The row, or why it is bad."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        row = json.loads(text)
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            raise UserError(
                wanted=f"a whole line {number} of {path}",
                got="the file ends in the middle of it",
                next_step="Copy or download the file again, or remove that line.",
            ) from error
        return "invalid JSON"
    if not isinstance(row, dict):
        return "not a JSON object"
    if "\\u" in text and _has_lone_surrogate(row):
        return "invalid Unicode (a lone surrogate)"
    for name, kind in fields.items():
        value = row.get(name)
        if value is None:
            return f"no field {name}"
        if not isinstance(value, kind):
            return f"field {name} is not {'text' if kind is str else f'a {kind.__name__}'}"
        if value == [] or (isinstance(value, str) and not value.strip()):
            return f"empty {name}"
    row.setdefault("id", f"{path.name.split('.')[0]}-{number}")
    return row


def _has_lone_surrogate(row: Row) -> bool:
    """JSON can spell half a character with an escape; UTF-8 cannot hold it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
