"""Gemma-2-LMSYS-Chat-1M-Synth from its three files: the join that its publisher's scripts make.

The answers are public. The Japanese instructions are encrypted, since they derive from lmsys/lmsys-chat-1m, whose terms
each user accepts for themselves: whoever has that set can compute the key with the publisher's script. How the script
does it is not known here, and no script of a data set is ever run. The three are joined on `conversation_id` in a
database in the stage's scratch folder, which goes when the last row is read; so does the decrypted file.
"""

import contextlib
import shutil
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from common.errors import InputError, UserError
from common.rows import EARLY_FACTOR, Row, RowCounts, read_rows
from common.sources import HubFiles
from instruct.conversations import gpg
from instruct.conversations.lmsys_rows import (
    ID,
    PERSONAL_DATA,
    LmsysConfig,
    instruction_of,
    is_synthesized,
    joined_row,
    rule_against_row,
)
from instruct.conversations.local import FileOpener, files_of, first_rows, read_chat, unknown_columns
from instruct.conversations.tally import Tally

PASSPHRASE_VARIABLE = "LMSYS_SYNTH_PASSPHRASE"
KEY_HINT = (
    "Compute it from your own copy of lmsys-chat-1m with the publisher's script "
    f"scripts/compute_decryption_key_from_lmsys-chat-1m.sh and put what it prints into {PASSPHRASE_VARIABLE}."
)
_NO_INSTRUCTION, _NO_ORIGINAL = "no instruction with its id", "no original with its id"
_ANOTHER_VERSION = (
    "Take another revision of the set, or join the files with the publisher's scripts and give the result."
)
_FIND = "SELECT (SELECT redacted FROM originals WHERE id = :id), (SELECT text FROM instructions WHERE id = :id)"
_ENOUGH_TO_JUDGE = 1000


def is_joined(files: Sequence[Path]) -> bool:
    """Whether these files hold conversations already: the publisher's merged file, or the one made for SFT."""
    return not any(_is_instructions(file.name) for file in files)


def check_lmsys(files: Sequence[Path] | HubFiles, original: Sequence[Path] | HubFiles) -> None:
    """Whether all is there that the join needs, before any file is read or downloaded.

    Args:
        files: the answers and the instructions, encrypted or not; or the file that is joined already.
        original: the user's copy of lmsys-chat-1m: its Parquet files, or the export that the publisher's script makes.

    Raises:
        UserError: a file is missing, or gpg or the passphrase where a file is encrypted.
    """
    names = [PurePath(file).name for file in (files.files if isinstance(files, HubFiles) else files)]
    instructions = [name for name in names if _is_instructions(name)]
    if not instructions:
        return
    if len(instructions) == len(names):
        raise UserError(
            wanted="the answers gemma2-lmsys-chat-1m-synth-ja+en.jsonl.gz beside the instructions",
            got=f"only {', '.join(instructions)}",
            next_step="Give both files of the set.",
        )
    if not original:
        raise UserError(
            wanted="your own copy of lmsys/lmsys-chat-1m, from which the instructions derive",
            got="none",
            next_step="Accept the terms of lmsys/lmsys-chat-1m with your own account, download it, and give its files.",
        )
    if all(_is_encrypted(name) for name in instructions):
        gpg.check(instructions[0], variable=PASSPHRASE_VARIABLE, key_hint=KEY_HINT)


def read_lmsys(
    files: Sequence[Path] | HubFiles,
    original: Sequence[Path] | HubFiles,
    tally: Tally,
    config: LmsysConfig,
    scratch: Path,
    max_bad_share: float,
) -> Iterator[Row]:
    """Yields `{id, messages}`; rows that the set's own marks leave out are booked in `tally`.

    Args:
        files: as `check_lmsys` takes them; so is `original`.
        scratch: a folder of the stage for what goes again.
        max_bad_share: share of the answers that may lack their instruction or original, and of the rows of the
            instructions and of the originals that may be bad, 0 to 1.

    Raises:
        UserError: what `check_lmsys` refuses, or a wrong passphrase; InputError: too many bad rows, or files that do
            not match.
    """
    check_lmsys(files, original)
    opened = files_of(files, scratch)
    instructions = [file for file in opened if _is_instructions(file[0])]
    answers = [file for file in opened if not _is_instructions(file[0])]
    if not instructions:
        yield from read_chat(answers, tally, config)
        return
    with _database(scratch / "lmsys") as database:
        # The instructions first: a wrong passphrase is known before a million rows are read.
        stored = _store_instructions(database, instructions, scratch / "lmsys", max_bad_share)
        tally.joined["instructions"] = stored
        tally.joined["originals"] = _store_originals(database, files_of(original, scratch), config, max_bad_share)
        yield from _Join(database, tally, config, max_bad_share).rows(answers)


def _is_instructions(name: str) -> bool:
    return "user-instructions" in name or _is_encrypted(name)


def _is_encrypted(name: str) -> bool:
    return name.endswith(".gpg")


@contextlib.contextmanager
def _database(folder: Path) -> Generator[sqlite3.Connection]:
    """A database that is gone afterwards, with everything else in its folder; so is what a killed run left there."""
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


def _store_originals(
    database: sqlite3.Connection, files: Iterable[FileOpener], config: LmsysConfig, max_bad_share: float
) -> int:
    """Ids of the user's copy, and which rows have personal data."""
    counts = RowCounts()
    for _, opener in files:
        with opener() as file:
            rows = first_rows(file)
            needed = (ID, "redacted") if config.exclude_personal_data else (ID,)
            if rows and not all(name in row for row in rows for name in needed):
                raise unknown_columns(
                    file,
                    rows,
                    wanted=f"the columns {' and '.join(needed)} of lmsys-chat-1m",
                    next_step="Give its Parquet files; without `redacted`, personal data cannot be excluded.",
                )
            for row in read_rows(file, fields={ID: str}, counts=counts, max_bad_share=1.0):
                database.execute("INSERT OR IGNORE INTO originals VALUES (?, ?)", (row[ID], bool(row.get("redacted"))))
    counts.check(max_bad_share)
    return _count(database, "originals", "your copy of lmsys-chat-1m")


def _store_instructions(
    database: sqlite3.Connection, files: Sequence[FileOpener], scratch: Path, max_bad_share: float
) -> int:
    """The users' first turns by id; a file that is there decrypted need not be decrypted."""
    counts = RowCounts()
    plain = [file for file in files if not _is_encrypted(file[0])]
    for _, opener in plain or files:
        with opener() as file, contextlib.nullcontext(file) if plain else _decrypted(file, scratch) as readable:
            rows = first_rows(readable)
            if rows and not any(ID in row and instruction_of(row) for row in rows):
                raise unknown_columns(
                    readable, rows, wanted=f"the column {ID} and a user's turn", next_step=_ANOTHER_VERSION
                )
            for row in read_rows(readable, fields={ID: str}, counts=counts, max_bad_share=1.0):
                text = instruction_of(row)
                if text is not None:
                    database.execute("INSERT OR IGNORE INTO instructions VALUES (?, ?)", (row[ID], text))
    counts.check(max_bad_share)
    return _count(database, "instructions", "the file of instructions")


@contextlib.contextmanager
def _decrypted(encrypted: Path, scratch: Path) -> Generator[Path]:
    readable = scratch / encrypted.name.removesuffix(".gpg")
    try:
        gpg.decrypt(encrypted, readable, variable=PASSPHRASE_VARIABLE, key_hint=KEY_HINT)
        yield readable
    finally:
        readable.unlink(missing_ok=True)


def _count(database: sqlite3.Connection, table: str, name: str) -> int:
    (count,) = database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    if not count:
        raise UserError(wanted=f"rows in {name}", got="none", next_step="Download the file again.")
    return count


class _Join:
    """The answers in the order of their file, each with its instruction."""

    def __init__(self, database: sqlite3.Connection, tally: Tally, config: LmsysConfig, max_bad_share: float) -> None:
        self._database, self._tally, self._config, self._max_bad_share = database, tally, config, max_bad_share
        self._wanted = self._missing_instructions = self._missing_originals = 0

    def rows(self, answers: Iterable[FileOpener]) -> Iterator[Row]:
        """Yields the conversations; books the others."""
        tally = self._tally
        for _, opener in answers:
            with opener() as file:
                looked_at = first_rows(file)
                if looked_at and not any(ID in row and is_synthesized(row) for row in looked_at):
                    raise unknown_columns(
                        file,
                        looked_at,
                        wanted=f"the column {ID} and the synthesized answers",
                        next_step=_ANOTHER_VERSION,
                    )
                for row in read_rows(file, fields={ID: str}, counts=tally.counts, max_bad_share=1.0):
                    made = self._conversation(row)
                    if isinstance(made, str):
                        tally.bad(made, row)
                    elif made is not None:
                        yield made
        tally.joined["answers"] = self._wanted
        self._check_match()

    def _conversation(self, row: Row) -> Row | str | None:
        """The conversation, what is wrong with it, or None where a rule left it out."""
        rule = rule_against_row(row, self._config)
        if rule is None:
            self._wanted += 1
            redacted, instruction = self._database.execute(_FIND, {"id": row[ID]}).fetchone()
            if instruction is not None and redacted is not None:
                if not (redacted and self._config.exclude_personal_data):
                    return joined_row(row, instruction, self._tally.answers_chosen_by)
                rule = PERSONAL_DATA
            else:
                rule = _NO_INSTRUCTION if instruction is None else _NO_ORIGINAL
                self._missing_instructions += instruction is None
                self._missing_originals += redacted is None
                if self._wanted >= _ENOUGH_TO_JUDGE:  # files of two versions differ from the start
                    self._check_match(EARLY_FACTOR)
        self._tally.leave_out(rule, row | {"id": row[ID]})
        return None

    def _check_match(self, factor: int = 1) -> None:
        """InputError when more than `factor` times the share allowed has no match."""
        missing = max(self._missing_instructions, self._missing_originals)
        if missing > factor * self._max_bad_share * self._wanted:
            raise InputError(
                wanted=f"an instruction and an original for each answer, all but {self._max_bad_share:.2%}",
                got=f"{self._wanted:,} answers, {self._missing_instructions:,} of them without instruction and "
                f"{self._missing_originals:,} without original (there are {self._tally.joined['instructions']:,} "
                f"instructions and {self._tally.joined['originals']:,} originals)",
                next_step="Take all files of the set at one revision, and all files of lmsys-chat-1m.",
            )
