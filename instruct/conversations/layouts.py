"""Chat files in the usual layouts, recognised by their columns (one layout a file), and the rows of LMSYS synth sets.

`messages`, `conversation`, `conversations` (lists of turns with the fields `role` and `content`, or ShareGPT's `from`
and `value`), `instruction`/`input`/`output` (Alpaca), question and answer in two columns (`instruction`/`response`
etc., as text or as lists of turns), and the joined file of an LMSYS synth set, whose rows `lmsys` joins.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from common.errors import UserError, require_above, require_below
from common.known_sets import require_own_terms
from common.provenance import Terms
from common.rows import Row, RowCounts, data_files, read_rows
from common.sources import Found, HubDataset, HubFiles, fetched, found_files
from instruct.conversations.counts import RuleCounts
from instruct.conversations.rules import LmsysConfig, calls_of, conversation_row

_LISTS_OF_TURNS = ("messages", "conversation", "conversations")
_PAIRS = tuple(product(("instruction", "prompt", "question"), ("output", "response", "answer", "completion")))
_CONTEXTS = ("input", "context")  # a separate column that the question refers to
_SYSTEMS = ("system", "system_prompt")
# Speakers in ShareGPT's files, and in files with the same layout.
_ASSISTANT = dict.fromkeys(("gpt", "chatgpt", "model", "bot", "assistant"), "assistant")
_SPEAKERS = {"human": "user", "user": "user", "system": "system", "observation": "tool", "tool": "tool", **_ASSISTANT}
_CALL = "function_call"
_FIRST_ROWS, _NAMED_COLUMNS = 100, 20

ID = "conversation_id"
PERSONAL_DATA = "personal data"
FIRST_ANSWER = "the first answer"
"""How an answer is chosen if there are no scores."""
# A row has the Japanese instruction (`translated_conversation`, empty until the encrypted file is joined), up to six
# answers, and optionally a whole conversation of one or two turns. The publisher documents no score field: it is found
# by its form.
_CONVERSATION, _RESPONSES = "synthesized_multiturn_conversation", "synthesized_assistant_responses"
_INSTRUCTION_TURNS = ("translated_conversation", "conversation", "messages")
_INSTRUCTION_TEXTS = ("user_instruction_ja", "instruction_ja", "instruction", "text")
_SCORE = "score"

FileOpener = tuple[str, Callable[[], AbstractContextManager[Path]]]
"""The name of a file, and a context in which it is on this machine."""
Reader = Callable[[Row, RuleCounts, LmsysConfig], Row | str | None]
"""From a row to a conversation, the reason why it is bad, or None if a rule, which is counted, removes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversationSource:
    """One set of conversations."""

    name: str
    """Name in cards and reports; never a path."""
    kind: Literal["auto", "lmsys"] = "auto"
    """`auto`: chat files, whose columns determine the layout. `lmsys`: answers and encrypted instructions to join."""
    files: tuple[Path, ...] | HubFiles | HubDataset
    """Local files (a folder means its `conversations.jsonl`); files of the hub; or the name of a known set, in a recipe
    whose sources are not resolved yet."""
    original: tuple[Path, ...] | HubFiles = ()
    """For `lmsys`: the files of the user's own copy of lmsys-chat-1m."""
    weight: float | None = None
    """Its share of the rows, relative to the weights of the other sources; None in all sources keeps all rows."""
    terms: Terms | None = None
    """Licence and obligations; None if they are not known."""

    def __post_init__(self) -> None:
        require_own_terms(None if isinstance(self.files, tuple) else self.files.name, self.terms)
        require_above(0, weight=self.weight, next_step=f"correct the weight of {self.name}")
        require_below(inf, weight=self.weight, next_step=f"correct the weight of {self.name}")
        if self.files == ():
            raise UserError("empty", wanted=f"files of {self.name}", got="none", next_step="name at least one")

    @property
    def found(self) -> Found:
        """Its files; UserError where only the name of the set is known."""
        return found_files(self.files)


def files_of(files: Sequence[Path] | HubFiles, scratch: Path) -> list[FileOpener]:
    """The files of a source, each to be opened when it is read; a folder means its `conversations.jsonl`."""
    if isinstance(files, HubFiles):
        return [(PurePosixPath(name).name, partial(fetched, files, name, scratch)) for name in files.files]
    found = [file for path in files for file in data_files(path, "conversations")]
    return [(file.name, partial(nullcontext[Path], file)) for file in found]


def read_chat(files: Iterable[FileOpener], counts: RuleCounts, config: LmsysConfig) -> Iterator[Row]:
    """Yield `{id, messages}`, with `tools` if there are any, of each file in turn.

    Bad rows and rows that a rule removes are added to `counts`; the caller checks the share of the bad ones.

    Raises:
        UserError: a file is missing, damaged or of no known layout.
    """
    for _, opener in files:
        with opener() as file:
            fields, read = _layout_of(file)
            for row in read_rows(file, fields=fields, counts=counts.rows, max_bad_share=1.0):
                made = read(row, counts, config)
                if isinstance(made, str):
                    counts.count_bad(made, row)
                elif made is not None:
                    yield made


def first_rows(file: Path) -> list[Row]:
    """The first rows of a file that are JSON objects, at most 100."""
    return list(islice(read_rows(file, fields=(), counts=RowCounts(), max_bad_share=1.0), _FIRST_ROWS))


def unknown_columns(file: Path, rows: Sequence[Row], *, wanted: str, next_step: str) -> UserError:
    """The error for a file with unknown columns: it names them."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "id"))
    more = f" and {len(columns) - _NAMED_COLUMNS} more" if len(columns) > _NAMED_COLUMNS else ""
    got = f"the columns {', '.join(columns[:_NAMED_COLUMNS]) or 'none'}{more}"
    return UserError("wrong-format", wanted=f"{wanted} in {file.name}", got=got, next_step=next_step)


def _layout_of(file: Path) -> tuple[dict[str, type], Reader]:
    """The fields that every row must hold, and the reader, from the first row that has a known layout.

    A file without good rows is read as `messages`.
    """
    rows = first_rows(file)
    for row in rows:
        if is_synthesized(row):
            _require_instructions(file, rows)
            return {}, _read_synthesized
        for name in _LISTS_OF_TURNS:
            if isinstance(row.get(name), list):
                return {name: list}, partial(_read_turns, name)
        for asked, answered in _PAIRS:
            for kind, read in ((str, _read_pair), (list, _read_parts)):
                if isinstance(row.get(asked), kind) and isinstance(row.get(answered), kind):
                    return {asked: kind, answered: kind}, partial(read, asked, answered)
    named = next((name for name in _LISTS_OF_TURNS if any(name in row for row in rows)), None)
    if rows and named is None:
        pairs = ", ".join("/".join(pair) for pair in _PAIRS)
        wanted = f"a column {', '.join(_LISTS_OF_TURNS)}, or two of {pairs}"
        next_step = "rename the columns, or write each row as {messages: [{role, content}, ...]}"
        raise unknown_columns(file, rows, wanted=wanted, next_step=next_step)
    named = named or _LISTS_OF_TURNS[0]
    return {named: list}, partial(_read_turns, named)


def _require_instructions(file: Path, rows: Sequence[Row]) -> None:
    """Raise UserError for a synth file as the publisher ships it: it has answers without instructions."""
    kept = [row for row in rows if rule_against_row(row, LmsysConfig()) is None]
    if kept and all(isinstance(joined_row(row, instruction_of(row), Counter()), str) for row in kept):
        wanted = f"the users' instructions in {file.name}, or the file of instructions next to it"
        next_step = "give also the publisher's file ..-user-instructions-ja.jsonl.gz.gpg, or the same decrypted"
        raise UserError("not-found", wanted=wanted, got="answers without them", next_step=next_step)


def _read_synthesized(row: Row, counts: RuleCounts, config: LmsysConfig) -> Row | str | None:
    rule = rule_against_row(row, config)
    if rule is not None:
        counts.count_removed(rule, row)
        return None
    return joined_row({ID: row["id"], **row}, instruction_of(row), counts.answers_chosen_by)


def _read_turns(name: str, row: Row, counts: RuleCounts, _: LmsysConfig) -> Row | str:
    turns = [_plain_turn(turn) for turn in cast(list[Any], row[name])]
    opened = bool(turns) and isinstance(turns[0], Mapping) and turns[0].get("role") == "system"
    system = _system_turn(row) if name == "conversations" and not opened else []
    return conversation_row(_id_of(row, counts), [*system, *turns], row.get("tools"))


def _read_pair(asked: str, answered: str, row: Row, counts: RuleCounts, _: LmsysConfig) -> Row | str:
    contexts = [row[name] for name in _CONTEXTS if row.get(name) is not None]
    if not all(isinstance(context, str) for context in contexts):
        return f"field {' or '.join(_CONTEXTS)} is not text"
    question = "\n\n".join([row[asked], *(context for context in contexts if context.strip())])
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": row[answered]}]
    return conversation_row(_id_of(row, counts), [*_system_turn(row), *turns])


def _read_parts(asked: str, answered: str, row: Row, counts: RuleCounts, _: LmsysConfig) -> Row | str:
    """Two lists of turns, as TRL has `prompt` and `completion`."""
    return conversation_row(_id_of(row, counts), [*row[asked], *row[answered]], row.get("tools"))


def _system_turn(row: Row) -> list[dict[str, str]]:
    systems = [row[name] for name in _SYSTEMS if isinstance(row.get(name), str) and row[name].strip()]
    return [{"role": "system", "content": system} for system in systems[:1]]


def _id_of(row: Row, counts: RuleCounts) -> Any:
    """The id of the row; a table has a column for ids even if a row has none."""
    return counts.rows.place if row["id"] is None else row["id"]


def _plain_turn(turn: Any) -> Any:
    """ShareGPT's `from` and `value` as `role` and `content`; anything else unchanged."""
    if not isinstance(turn, Mapping) or "from" not in turn or "role" in turn:
        return turn
    speaker: Any = cast(Mapping[str, Any], turn)["from"]
    if isinstance(speaker, str) and speaker.lower() == _CALL:
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": calls_of(cast(Mapping[str, Any], turn).get("value")),
        }
    role = _SPEAKERS.get(speaker.lower(), speaker) if isinstance(speaker, str) else speaker
    return {"role": role, "content": cast(Mapping[str, Any], turn).get("value")}


# --- one row of an LMSYS synth set: the conversation in it, or the rule that removes it ---


def is_synthesized(row: Mapping[str, Any]) -> bool:
    """Whether a row has this set's answers, joined with its instruction or not."""
    return _CONVERSATION in row or _RESPONSES in row


def rule_against_row(row: Mapping[str, Any], config: LmsysConfig) -> str | None:
    """The rule that removes the row, from the publisher's own marks, or None."""
    broken = {
        "empty instruction": row.get("empty_user_instruction_ja") is True,
        "duplicate instruction": row.get("duplicate_user_instruction_ja") not in (None, False, ""),
        "template instruction": config.exclude_templates and row.get("is_template_instruction"),
        "no answer": not row.get(_CONVERSATION) and not row.get(_RESPONSES),
        PERSONAL_DATA: config.exclude_personal_data and row.get("redacted") is True,
    }
    return next((rule for rule, is_broken in broken.items() if is_broken), None)


def instruction_of(row: Mapping[str, Any]) -> str | None:
    """The user's first turn in a row of the joined or of the decrypted file; None if it has no text."""
    turns = [cast(list[Any], row[name])[:1] for name in _INSTRUCTION_TURNS if isinstance(row.get(name), list)]
    texts = [
        cast(Mapping[str, Any], turn).get("content") for [turn] in filter(None, turns) if isinstance(turn, Mapping)
    ]
    texts += [row.get(name) for name in _INSTRUCTION_TEXTS]
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


def joined_row(row: Mapping[str, Any], instruction: str | None, chosen_by: Counter[str]) -> Row | str:
    """`{id, messages}`, or the reason why the row is bad.

    Args:
        row: with the answers of this set, kept by `rule_against_row`.
        instruction: the user's first turn; None if the conversation has its own.
        chosen_by: counts the field that chose the answer.
    """
    if conversation := row.get(_CONVERSATION):
        if not isinstance(conversation, list):
            return f"field {_CONVERSATION} is not a list"
        return conversation_row(row.get(ID), _completed(cast(list[Any], conversation), instruction))
    responses = row.get(_RESPONSES)
    if not isinstance(responses, list) or not responses:
        return f"field {_RESPONSES} is not a list"
    if instruction is None:
        return "no instruction"
    place, field = best_response(row, cast(list[Any], responses))
    chosen_by[field or FIRST_ANSWER] += 1
    response: Any = responses[place]
    answer = {"role": "assistant", "content": response} if isinstance(response, str) else response
    if not isinstance(answer, Mapping):
        return "an answer without text"
    return conversation_row(row.get(ID), [{"role": "user", "content": instruction}, _plain_message(answer)])


def best_response(row: Mapping[str, Any], responses: Sequence[Any]) -> tuple[int, str | None]:
    """Index of the best of `responses`, and the field with its scores; (0, None) if there are no scores.

    Scores are a list of numbers, one for each response, in a field of the row whose name contains "score", or such a
    number in each response. The first of equals wins, and of several such fields the first by name.
    """
    candidates: dict[str, list[Any]] = {
        name: cast(list[Any], value)
        for name, value in row.items()
        if _SCORE in name.lower() and isinstance(value, list) and len(cast(list[Any], value)) == len(responses)
    }
    if all(isinstance(response, Mapping) for response in responses):
        named = {str(name) for response in responses for name in response if _SCORE in str(name).lower()}
        candidates |= {f"{_RESPONSES}.{name}": [response.get(name) for response in responses] for name in named}
    for name in sorted(candidates):
        scores = {place: score for place, score in enumerate(candidates[name]) if _is_number(score)}
        if scores:
            return max(scores, key=scores.__getitem__), name
    return 0, None


def _completed(conversation: list[Any], instruction: str | None) -> list[Any]:
    """With the user's first turn, if the publisher left it out or empty because it must not be passed on."""
    messages = [_plain_message(message) for message in conversation]
    first = messages[0]
    if instruction is None or not isinstance(first, Mapping):
        return messages
    opening = {"role": "user", "content": instruction}
    if first["role"] == "assistant":
        return [opening, *messages]
    return [opening, *messages[1:]] if first["role"] == "user" and not first["content"] else messages


def _plain_message(message: Any) -> Any:
    """Its role and content; anything that is no message unchanged."""
    if not isinstance(message, Mapping):
        return message
    return {name: cast(Mapping[str, Any], message).get(name) for name in ("role", "content")}


def _is_number(value: Any) -> bool:
    """Whether it can be compared as a score: not a truth value, not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
