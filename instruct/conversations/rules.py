"""Rules for one conversation: the form that it must have, and filters on what it says.

Each filter can be off, and what it removes is counted under its name. Independent of sources, tokenizers and files.
"""

import json
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from common.errors import require_at_least, require_between
from common.rows import Row
from instruct.conversations.counts import card_step

# Roles that can follow a role. A conversation ends with the assistant, with or without a call.
_MAY_FOLLOW = {
    "beginning": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "assistant's call": ("tool",),
    "tool": ("tool", "assistant"),
}
# Half a surrogate pair, NUL, and the replacement of several undecodable bytes. A single replacement character can be
# the subject of the text.
_BROKEN = re.compile("[\ud800-\udfff\0]|\ufffd{2}")
# Fields that the chat templates of the Qwen, Llama and Gemma families read.
_MESSAGE_FIELDS = frozenset(("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"))
# Levels of objects and lists inside a message or a tool. Templates and JSON writers descend by recursion.
_MOST_LEVELS = 32
_WORDS_FILE = Path(__file__).with_name("filters.toml")
_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_KANA = r"\u3041-\u309f\u30a1-\u30ff\uff66-\uff9f"
_KANJI = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_JAPANESE = re.compile(f"[{_KANA}{_KANJI}]")
_ONLY_KANA = re.compile(f"[{_KANA}]")
_LETTER = re.compile(r"[^\W\d_]")
_ASKED_IN_JAPANESE = 0.5
_BEFORE_WORDS = re.compile(r"^[\W_]+")  # quotation marks, brackets and list signs


def fault_of(messages: Sequence[Any]) -> str | None:
    """Why `messages` are not a conversation, or None if they are one.

    A conversation is an optional system message, then user and assistant in turn, the assistant last. A turn of the
    assistant has text or tool calls; after calls come the answers of the tools and the assistant again. No turn holds
    broken text.
    """
    before = "beginning"
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return "a message without role"
        role, content = message["role"], message.get("content")
        calls = message.get("tool_calls") if role == "assistant" else None
        if role not in ("system", "user", "assistant", "tool"):
            return "unknown role"
        if role not in _MAY_FOLLOW[before]:
            return "roles out of order"
        if content is not None and not isinstance(content, str):
            return "content that is not text"
        if calls and not _are_objects(calls):
            return "tool calls that are no list of objects"
        if not calls and not (content and content.strip()):
            return "empty turn"
        if content and _BROKEN.search(content):
            return "broken text in a turn"
        before = "assistant's call" if calls else role
    return None if before.startswith("assistant") else "roles out of order"


def calls_of(value: Any) -> Any:
    """Tool calls from their JSON text, `{name, arguments}` or a list of these; the value itself where it is none."""
    calls = _parsed(value)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in cast(list[Any], calls)):
        return value
    named = cast(list[Mapping[str, Any]], calls)
    return [call if "function" in call else {"type": "function", "function": dict(call)} for call in named]


def conversation_row(identity: Any, messages: Sequence[Any], tools: Any = None) -> Row | str:
    """`{id, messages}`, with `tools` if there are any, or the reason why it is bad.

    Of a message only the fields that chat templates read are kept: others (numbers, times) make two copies of a
    conversation differ, and cannot always be JSON. Empty fields are dropped: a table has every column in every row.

    `identity` becomes the `id`. `tools` are function descriptions, or JSON text of them; None, [] and "" are no tools.
    """
    kept = [_known_fields(message) if isinstance(message, Mapping) else message for message in messages]
    fault = fault_of(kept)
    if fault is not None:
        return fault
    row: Row = {"messages": kept}
    if isinstance(tools, str) and tools.strip():
        tools = _parsed(tools)
        if isinstance(tools, str):
            return "tools that are no JSON"
    if tools and not isinstance(tools, str):
        if not _are_objects(tools):
            return "tools that are no list of objects"
        row["tools"] = tools
    if _is_deeper(row, _MOST_LEVELS):  # before anything that descends by recursion
        return "nested too deep"
    row = {"messages": [_with_calls(message) for message in kept]}
    if tools and not isinstance(tools, str):
        row["tools"] = [_described(tool) for tool in tools]
    if _is_deeper(row, _MOST_LEVELS):
        return "nested too deep"
    return {"id": identity if isinstance(identity, str | int) else str(identity)} | row


def _known_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    known = ((name, message[name]) for name in message if name in _MESSAGE_FIELDS)
    return {name: value for name, value in known if value is not None or name == "content"}


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    """The message with each tool call's arguments as an object; see `_with_arguments`."""
    calls = message.get("tool_calls")
    return message | {"tool_calls": [_with_arguments(call) for call in calls]} if calls else message


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call, or its `function`, whose arguments are an object.

    Many sets write them as JSON text, which a template would quote once more. Nulls that such a text spells are
    arguments; those of an object are what a table puts into every row.
    """
    inner, arguments = call.get("function"), call.get("arguments")
    kept = {name: _without_nulls(value) for name, value in call.items() if value is not None}
    if isinstance(inner, Mapping):
        kept["function"] = _with_arguments(cast(Mapping[str, Any], inner))
    if isinstance(arguments, str):
        kept["arguments"] = _parsed(arguments)
    return kept


def _described(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as templates take it, `{type, function}`, without what a table fills up."""
    filled = _without_nulls(tool)
    is_bare = "function" not in filled and isinstance(filled.get("name"), str)
    return {"type": "function", "function": filled} if is_bare else filled


def _without_nulls(value: Any) -> Any:
    """The value without the fields of objects that are null, at every depth."""
    if isinstance(value, Mapping):
        fields = cast(Mapping[str, Any], value)
        return {name: _without_nulls(item) for name, item in fields.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in cast(list[Any], value)]
    return value


def _parsed(text: Any) -> Any:
    """The value of a JSON text; the text itself where it is none, or spells half a character, which UTF-8 cannot."""
    if not isinstance(text, str):
        return text
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return text
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class FiltersConfig:
    """Which conversations the filters keep."""

    min_turn_characters: int = 1
    """Smallest number of characters of a turn of user or assistant; 1 is no limit."""
    max_turn_characters: int | None = None
    """Largest number of characters of a turn of user or assistant; None is no limit."""
    min_japanese_share: float | None = 0.1
    """Smallest share of Japanese letters in the assistant's text, 0 to 1, if the user writes Japanese and does not ask
    for another language or code; code blocks do not count. None turns the rule off."""
    judged_letters: int = 100
    """Smallest number of letters of the assistant's text for this rule: names and terms are often in Latin script."""
    drop_refusals: bool = False
    """Whether to remove conversations in which the assistant declines. Off: a model must also learn to decline."""

    def __post_init__(self) -> None:
        require_at_least(1, min_turn_characters=self.min_turn_characters, judged_letters=self.judged_letters)
        require_at_least(self.min_turn_characters, max_turn_characters=self.max_turn_characters)
        require_between(0, 1, min_japanese_share=self.min_japanese_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class LmsysConfig:
    """Which rows of LMSYS sets are removed; the publisher's own script has both options."""

    exclude_personal_data: bool = True
    """Rows whose original has personal data blacked out (`redacted`)."""
    exclude_templates: bool = True
    """Rows whose instruction is a template that many users sent (`is_template_instruction`)."""


def rule_against(messages: Sequence[Mapping[str, Any]], config: FiltersConfig) -> str | None:
    """The first filter that removes a conversation, or None if it is kept."""
    texts = [(message["role"], message["content"]) for message in messages if message.get("content")]
    asked, answered = ([text for role, text in texts if role == wanted] for wanted in ("user", "assistant"))
    turns = [*asked, *answered]
    if any(len(turn.strip()) < config.min_turn_characters for turn in turns):
        return "a turn too short"
    if config.max_turn_characters is not None and any(len(turn) > config.max_turn_characters for turn in turns):
        return "a turn too long"
    if config.min_japanese_share is not None and _in_another_language(asked, answered, config):
        return "answered in another language"
    if config.drop_refusals and any(is_refusal(turn) for turn in answered):
        return "a refusal"
    return None


def filter_steps(config: FiltersConfig) -> list[dict[str, Any]]:
    """The filters for the data card: which are on, and their settings."""
    turns = {"min_characters": config.min_turn_characters, "max_characters": config.max_turn_characters}
    language = {"min_japanese_share": config.min_japanese_share, "judged_letters": config.judged_letters}
    limited = config.min_turn_characters > 1 or config.max_turn_characters is not None
    refusals_off = None if config.drop_refusals else "declining what is harmful is to be learnt too"
    return [
        card_step("turn lengths", off=None if limited else "no limit was set", settings=turns),
        card_step("language", off="turned off" if config.min_japanese_share is None else None, settings=language),
        card_step("refusals", off=refusals_off),
    ]


def japanese_share(text: str) -> float | None:
    """Share of Japanese letters among the letters of `text` outside code blocks; None if there are no letters.

    20 letters or more without kana are Chinese, and give 0.
    """
    letters = "".join(_LETTER.findall(_CODE_BLOCK.sub(" ", text)))
    if not letters:
        return None
    is_chinese = len(letters) >= 20 and not _ONLY_KANA.search(letters)
    return 0.0 if is_chinese else len(_JAPANESE.findall(letters)) / len(letters)


def is_refusal(turn: str) -> bool:
    """Whether a turn of the assistant begins with a refusal."""
    words = _words()["refusals"]
    opening = _BEFORE_WORDS.sub("", _normal(turn[: 2 * words["opening_characters"]]))[: words["opening_characters"]]
    if opening.startswith(tuple(words["outright"])):
        return True
    return opening.startswith(tuple(words["apologies"])) and any(phrase in opening for phrase in words["unable"])


def _in_another_language(asked: Sequence[str], answered: Sequence[str], config: FiltersConfig) -> bool:
    answer, question = _CODE_BLOCK.sub(" ", "\n".join(answered)), "\n".join(asked)
    if len(_LETTER.findall(answer)) < config.judged_letters:
        return False
    if (japanese_share(question) or 0.0) < _ASKED_IN_JAPANESE:
        return False
    share = japanese_share(answer)
    if share is None or config.min_japanese_share is None or share >= config.min_japanese_share:
        return False
    question = _normal(question)
    return not any(word in question for word in _words()["other_languages"]["asked_for"])


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()


@cache
def _words() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_WORDS_FILE.read_text(encoding="utf-8"))


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in cast(list[Any], value))


def _is_deeper(value: Any, levels: int) -> bool:
    if isinstance(value, Mapping):
        value = list(cast(Mapping[str, Any], value).values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in cast(list[Any], value))
