"""Chat files in the layouts that people use, told apart by their columns: one file, one layout.

`messages`, `conversation`, `conversations` (lists of turns, whose fields are `role` and `content` or ShareGPT's `from`
and `value`), `instruction`/`input`/`output` (Alpaca), question and answer in two columns (`instruction`/`response`
and the like), and the joined file of an LMSYS synth set. It does not know where the files come from.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, cast

from common.errors import UserError
from common.rows import Row, RowCounts, data_files, read_rows
from common.sources import HubFiles, fetched
from instruct.conversations.checking import conversation_row
from instruct.conversations.lmsys_rows import (
    ID,
    LmsysConfig,
    instruction_of,
    is_synthesized,
    joined_row,
    rule_against_row,
)
from instruct.conversations.tally import Tally

_LISTS_OF_TURNS = ("messages", "conversation", "conversations")
_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("question", "answer"),
)
_CONTEXTS = ("input", "context")  # what the question is about, where it stands apart
# Who speaks in ShareGPT's files, and in those made after its example.
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_LOOKED_AT_ROWS = 100
_NAMED_COLUMNS = 20

FileOpener = tuple[str, Callable[[], AbstractContextManager[Path]]]
"""A file's name and how to have it on this machine for a while."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a file's rows say a conversation."""

    fields: Mapping[str, type]
    """What every row must hold."""
    read: Callable[[Row, Tally, LmsysConfig], Row | str | None]
    """A conversation, what is wrong with the row, or None where a rule left it out and booked it."""


def files_of(files: Sequence[Path] | HubFiles, scratch: Path) -> list[FileOpener]:
    """The files of a source, each to be opened when its turn comes; a folder stands for its `conversations.jsonl`."""
    if isinstance(files, HubFiles):
        return [(PurePosixPath(name).name, _hub_opener(files, name, scratch)) for name in files.files]
    found = [file for path in files for file in data_files(path, "conversations")]
    return [(file.name, _local_opener(file)) for file in found]


def read_chat(files: Iterable[FileOpener], tally: Tally, config: LmsysConfig) -> Iterator[Row]:
    """Yields `{id, messages}`, and `tools` where there are any, of each file in turn.

    Bad rows and rows that a rule left out are booked in `tally`; how many bad ones are too many is for the caller.

    Raises:
        UserError: a file is missing, damaged or of no known layout.
    """
    for _, opener in files:
        with opener() as file:
            layout = _layout_of(file)
            for row in read_rows(file, fields=layout.fields, counts=tally.counts, max_bad_share=1.0):
                made = layout.read(row, tally, config)
                if isinstance(made, str):
                    tally.bad(made, row)
                elif made is not None:
                    yield made


def first_rows(file: Path) -> list[Row]:
    """The first rows of a file that are JSON objects, at most 100."""
    return list(islice(read_rows(file, fields=(), counts=RowCounts(), max_bad_share=1.0), _LOOKED_AT_ROWS))


def unknown_columns(file: Path, rows: Sequence[Row], *, wanted: str, next_step: str) -> UserError:
    """The error for a file whose columns say nothing: it shows them."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "id"))
    shown = ", ".join(columns[:_NAMED_COLUMNS]) or "none"
    more = f" and {len(columns) - _NAMED_COLUMNS} more" if len(columns) > _NAMED_COLUMNS else ""
    return UserError(
        wanted=f"{wanted} in {file.name}",
        got=f"the columns {shown}{more}",
        next_step=next_step,
    )


def _hub_opener(files: HubFiles, name: str, scratch: Path) -> Callable[[], AbstractContextManager[Path]]:
    return lambda: fetched(files, name, scratch)


def _local_opener(file: Path) -> Callable[[], AbstractContextManager[Path]]:
    return lambda: contextlib.nullcontext(file)


def _layout_of(file: Path) -> _Layout:
    """By the first row that has one of the known layouts; a file without any good row is read as `messages`."""
    rows = first_rows(file)
    for row in rows:
        if is_synthesized(row):
            _refuse_unjoined(file, rows)
            return _Layout({}, _read_synthesized)
        for name in _LISTS_OF_TURNS:
            if isinstance(row.get(name), list):
                return _Layout({name: list}, _reader_of_turns(name))
        for asked, answered in _PAIRS:
            if isinstance(row.get(asked), str) and isinstance(row.get(answered), str):
                return _Layout({asked: str, answered: str}, _reader_of_pairs(asked, answered))
    if rows and not any(name in row for row in rows for name in _LISTS_OF_TURNS):
        pairs = ", ".join("/".join(pair) for pair in _PAIRS)
        raise unknown_columns(
            file,
            rows,
            wanted=f"a column {', '.join(_LISTS_OF_TURNS)}, or two of {pairs}",
            next_step="Rename the columns, or write each row as {messages: [{role, content}, ...]}.",
        )
    named = next((name for name in _LISTS_OF_TURNS if any(name in row for row in rows)), _LISTS_OF_TURNS[0])
    return _Layout({named: list}, _reader_of_turns(named))


def _refuse_unjoined(file: Path, rows: Sequence[Row]) -> None:
    """A synth file as the publisher ships it has answers and no instructions."""
    wanted = [row for row in rows if rule_against_row(row, LmsysConfig()) is None]
    if wanted and all(isinstance(joined_row(row, instruction_of(row), Counter()), str) for row in wanted):
        raise UserError(
            wanted=f"the users' instructions in {file.name}, or beside it the file of instructions",
            got="answers without them",
            next_step="Give also the publisher's file ..-user-instructions-ja.jsonl.gz.gpg, or the same decrypted.",
        )


def _read_synthesized(row: Row, tally: Tally, config: LmsysConfig) -> Row | str | None:
    rule = rule_against_row(row, config)
    if rule is not None:
        tally.leave_out(rule, row)
        return None
    return joined_row({ID: row["id"], **row}, instruction_of(row), tally.answers_chosen_by)


def _reader_of_turns(name: str) -> Callable[[Row, Tally, LmsysConfig], Row | str | None]:
    def read(row: Row, tally: Tally, config: LmsysConfig) -> Row | str:
        turns = [_plain_turn(turn) for turn in cast(list[Any], row[name])]
        system = row.get("system")
        opened = bool(turns) and isinstance(turns[0], Mapping) and turns[0].get("role") == "system"
        if name == "conversations" and isinstance(system, str) and system.strip() and not opened:
            turns = [{"role": "system", "content": system}, *turns]
        return conversation_row(_id_of(row, tally), turns, row.get("tools"))

    return read


def _reader_of_pairs(asked: str, answered: str) -> Callable[[Row, Tally, LmsysConfig], Row | str | None]:
    def read(row: Row, tally: Tally, config: LmsysConfig) -> Row | str:
        contexts = [row[name] for name in _CONTEXTS if row.get(name) is not None]
        if not all(isinstance(context, str) for context in contexts):
            return f"field {' or '.join(_CONTEXTS)} is not text"
        question = "\n\n".join([row[asked], *(context for context in contexts if context.strip())])
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": row[answered]}]
        system = row.get("system")
        if isinstance(system, str) and system.strip():
            turns = [{"role": "system", "content": system}, *turns]
        return conversation_row(_id_of(row, tally), turns)

    return read


def _id_of(row: Row, tally: Tally) -> Any:
    """A table has a column for ids even where a row has none."""
    return tally.counts.place if row["id"] is None else row["id"]


def _plain_turn(turn: Any) -> Any:
    """ShareGPT's `from` and `value` as `role` and `content`; anything else as it is."""
    if not isinstance(turn, Mapping) or "from" not in turn or "role" in turn:
        return turn
    speaker: Any = cast(Mapping[str, Any], turn)["from"]
    role = _SPEAKERS.get(speaker.lower(), speaker) if isinstance(speaker, str) else speaker
    return {"role": role, "content": cast(Mapping[str, Any], turn).get("value")}
