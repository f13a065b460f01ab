"""Gemma-2-LMSYS-Chat-1M-Synth from its three files: the join that its publisher's scripts make.

The answers are public. The Japanese instructions are encrypted, since they derive from lmsys/lmsys-chat-1m, whose terms
each user accepts: a user who has that set can compute the key with the publisher's script. How the script does it is
not known here, and no script of a data set is ever run. The three files are joined on `conversation_id` in a database
in the stage's scratch folder; it is removed after the last row, as is the decrypted file.
"""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from common.errors import InputError, UserError, not_found
from common.rows import EARLY_FACTOR, Row, RowCounts, read_rows
from common.sources import HubFiles
from instruct.conversations import gpg, layouts
from instruct.conversations.counts import RuleCounts
from instruct.conversations.layouts import ID, FileOpener, files_of, instruction_of, is_synthesized
from instruct.conversations.rules import LmsysConfig

PASSPHRASE_VARIABLE = "LMSYS_SYNTH_PASSPHRASE"
KEY_HINT = (
    "compute it from your own copy of lmsys-chat-1m with the publisher's script "
    f"scripts/compute_decryption_key_from_lmsys-chat-1m.sh and put its output into {PASSPHRASE_VARIABLE}"
)
_NO_INSTRUCTION, _NO_ORIGINAL = "no instruction with its id", "no original with its id"
_ANOTHER_VERSION = (
    "take another revision of the set, join the files with the publisher's scripts, or give the Parquet files of "
    "lmsys-chat-1m, whose `redacted` excludes personal data"
)
_FIND = "SELECT (SELECT redacted FROM originals WHERE id = :id), (SELECT text FROM instructions WHERE id = :id)"
_ENOUGH_TO_JUDGE = 1000


def is_joined(files: Sequence[Path]) -> bool:
    """Whether these files already hold conversations: the publisher's merged file, or the one made for SFT."""
    return not any(_is_instructions(file.name) for file in files)


def check_lmsys(files: Sequence[Path] | HubFiles, original: Sequence[Path] | HubFiles) -> None:
    """Check that the join has all that it needs, before any file is read or downloaded.

    Args:
        files: the answers and the instructions, encrypted or not; or the file that is joined already.
        original: the user's copy of lmsys-chat-1m: its Parquet files, or the export of the publisher's script.

    Raises:
        UserError: a file is missing, or gpg or the passphrase of an encrypted file.
    """
    names = [PurePath(file).name for file in (files.files if isinstance(files, HubFiles) else files)]
    instructions = [name for name in names if _is_instructions(name)]
    if not instructions:
        return
    if len(instructions) == len(names):
        wanted = "the answers gemma2-lmsys-chat-1m-synth-ja+en.jsonl.gz next to the instructions"
        raise not_found(wanted, f"only {', '.join(instructions)}", next_step="give both files of the set")
    if not original:
        wanted = "your own copy of lmsys/lmsys-chat-1m, from which the instructions derive"
        next_step = "accept the terms of lmsys/lmsys-chat-1m with your own account, download it, and give its files"
        raise UserError("no-access", wanted=wanted, got="none", next_step=next_step)
    if all(_is_encrypted(name) for name in instructions):
        gpg.check(instructions[0], variable=PASSPHRASE_VARIABLE, key_hint=KEY_HINT)


def read_lmsys(
    files: Sequence[Path] | HubFiles,
    original: Sequence[Path] | HubFiles,
    counts: RuleCounts,
    config: LmsysConfig,
    scratch: Path,
    max_bad_share: float,
) -> Iterator[Row]:
    """Yield `{id, messages}`; rows that the publisher's marks remove are added to `counts`.

    `files` and `original` are those of `check_lmsys`; temporary files go into `scratch`. `max_bad_share` (0 to 1) is
    the most of the answers without instruction or original, and of bad rows among instructions and originals.

    Raises:
        UserError: the errors of `check_lmsys`, or a wrong passphrase; InputError: too many bad rows, or files that do
            not match.
    """
    check_lmsys(files, original)
    opened = files_of(files, scratch)
    instructions = [file for file in opened if _is_instructions(file[0])]
    answers = [file for file in opened if not _is_instructions(file[0])]
    if not instructions:
        yield from layouts.read_chat(answers, counts, config)
        return
    with _database(scratch / "lmsys") as database:
        join = _Join(database, counts, config, max_bad_share)
        # The instructions first: a wrong passphrase is found before a million rows are read.
        join.store_instructions(instructions, scratch / "lmsys")
        join.store_originals(files_of(original, scratch))
        yield from join.rows(answers)


def _is_instructions(name: str) -> bool:
    return "user-instructions" in name or _is_encrypted(name)


def _is_encrypted(name: str) -> bool:
    return name.endswith(".gpg")


@contextlib.contextmanager
def _database(folder: Path) -> Generator[sqlite3.Connection]:
    """A database in an empty folder, also after a killed run; the folder is removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with contextlib.closing(sqlite3.connect(folder / "join.sqlite", isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE originals (id TEXT PRIMARY KEY, redacted INTEGER) WITHOUT ROWID")
            database.execute("CREATE TABLE instructions (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
            database.execute("BEGIN")
            yield database
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rows_with_id(
    files: Iterable[FileOpener],
    counts: RowCounts,
    is_ours: Callable[[Row], Any],
    wanted: str,
    enough: Callable[[Iterable[Any]], bool] = any,
) -> Iterator[Row]:
    """The good rows of some files; UserError if not `enough` of the first rows of a file have the `wanted` columns."""
    for _, opener in files:
        with opener() as file:
            rows = layouts.first_rows(file)
            if rows and not enough(map(is_ours, rows)):
                raise layouts.unknown_columns(file, rows, wanted=wanted, next_step=_ANOTHER_VERSION)
            yield from read_rows(file, fields={ID: str}, counts=counts, max_bad_share=1.0)


@contextlib.contextmanager
def _decrypted(opener: Callable[[], AbstractContextManager[Path]], scratch: Path) -> Generator[Path]:
    with (
        opener() as encrypted,
        gpg.decrypted(encrypted, scratch, variable=PASSPHRASE_VARIABLE, key_hint=KEY_HINT) as readable,
    ):
        yield readable


class _Join:
    """The answers in the order of their file, each with its instruction."""

    def __init__(
        self, database: sqlite3.Connection, counts: RuleCounts, config: LmsysConfig, max_bad_share: float
    ) -> None:
        self._database, self._counts, self._config, self._max_bad_share = database, counts, config, max_bad_share
        self._wanted = self._missing_instructions = self._missing_originals = 0

    def store_instructions(self, files: Sequence[FileOpener], scratch: Path) -> None:
        """Store the users' first turns by id. A decrypted file replaces the encrypted one."""
        plain = [file for file in files if not _is_encrypted(file[0])]
        readable = plain or [(name, partial(_decrypted, opener, scratch)) for name, opener in files]
        counts, wanted = RowCounts(), f"the column {ID} and a user's turn"
        rows = _rows_with_id(readable, counts, lambda row: ID in row and instruction_of(row), wanted)
        self._store("instructions", counts, ((row[ID], instruction_of(row)) for row in rows))

    def store_originals(self, files: Iterable[FileOpener]) -> None:
        """Store the ids of the user's copy, and which rows have personal data."""
        needed = {ID, "redacted"} if self._config.exclude_personal_data else {ID}
        counts, wanted = RowCounts(), f"the columns {' and '.join(sorted(needed))} of lmsys-chat-1m"
        rows = _rows_with_id(files, counts, needed.issubset, wanted, enough=all)
        self._store("originals", counts, ((row[ID], bool(row.get("redacted"))) for row in rows))

    def rows(self, answers: Iterable[FileOpener]) -> Iterator[Row]:
        """Yield the conversations; count the others."""
        counts, wanted = self._counts, f"the column {ID} and the synthesized answers"
        for row in _rows_with_id(answers, counts.rows, lambda row: ID in row and is_synthesized(row), wanted):
            made = self._conversation(row)
            if isinstance(made, str):
                counts.count_bad(made, row)
            elif made is not None:
                yield made
        counts.joined["answers"] = self._wanted
        self._check_match()

    def _store(self, table: str, counts: RowCounts, values: Iterator[tuple[str, Any]]) -> None:
        """Store the values by id, except None, and count the rows of the table."""
        known = (pair for pair in values if pair[1] is not None)
        self._database.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", known)
        counts.check(self._max_bad_share)
        (stored,) = self._database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
        if not stored:
            wanted, next_step = f"{table} in the files of the set", "take all files of the set at one revision"
            raise UserError("empty", wanted=wanted, got="no row with one", next_step=next_step)
        self._counts.joined[table] = stored

    def _conversation(self, row: Row) -> Row | str | None:
        """The conversation, the reason why it is bad, or None if a rule removes it."""
        rule = layouts.rule_against_row(row, self._config)
        if rule is None:
            self._wanted += 1
            redacted, instruction = self._database.execute(_FIND, {"id": row[ID]}).fetchone()
            if instruction is not None and redacted is not None:
                if not (redacted and self._config.exclude_personal_data):
                    return layouts.joined_row(row, instruction, self._counts.answers_chosen_by)
                rule = layouts.PERSONAL_DATA
            else:
                rule = _NO_INSTRUCTION if instruction is None else _NO_ORIGINAL
                self._missing_instructions += instruction is None
                self._missing_originals += redacted is None
                if self._wanted >= _ENOUGH_TO_JUDGE:  # files of two versions differ from the start
                    self._check_match(EARLY_FACTOR)
        self._counts.count_removed(rule, row | {"id": row[ID]})
        return None

    def _check_match(self, factor: int = 1) -> None:
        """Raise InputError if more than `factor` times the allowed share has no match."""
        missing = max(self._missing_instructions, self._missing_originals)
        if missing > factor * self._max_bad_share * self._wanted:
            joined = self._counts.joined
            wanted = f"an instruction and an original for each answer, except {self._max_bad_share:.2%}"
            got = (
                f"{self._wanted:,} answers, {self._missing_instructions:,} of them without instruction and "
                f"{self._missing_originals:,} without original (there are {joined['instructions']:,} "
                f"instructions and {joined['originals']:,} originals)"
            )
            next_step = "take all files of the set at one revision, and all files of lmsys-chat-1m"
            raise InputError("mismatch", wanted=wanted, got=got, next_step=next_step)
