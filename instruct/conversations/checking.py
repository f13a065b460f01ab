"""What is a conversation: who may speak after whom, and what a turn may hold.

It knows no file, and judges form only: what is said is the business of `filters`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from common.rows import Row

# Who may speak after whom. A conversation ends with the assistant, with or without a call.
_MAY_FOLLOW = {
    "beginning": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "assistant's call": ("tool",),
    "tool": ("tool", "assistant"),
}
# Half a surrogate pair, NUL, and what a decoder leaves of several bytes that it could not read. One replacement
# character alone may be what the text is about.
_BROKEN = re.compile("[\ud800-\udfff\0]|\ufffd{2}")

# What chat templates of the Qwen, Llama and Gemma families read of a message.
_MESSAGE_FIELDS = frozenset(("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"))

# Levels of objects and lists inside a message or a tool. Templates and JSON writers go down by recursion.
_MOST_LEVELS = 32


def fault_of(messages: Sequence[Any]) -> str | None:
    """Why `messages` are no conversation, or None when they are one.

    A conversation: optionally one system message, then user and assistant in turn, the assistant last. An assistant's
    turn has text or tool calls; after calls come the tools' answers and the assistant again. No turn holds broken text.
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


def conversation_row(identity: Any, messages: Sequence[Any], tools: Any = None) -> Row | str:
    """`{id, messages}` and `tools` where there are any, or what is wrong with them.

    Of a message only what chat templates read is kept: numbers, times and the like beside it would make two copies of a
    conversation differ, and may be no JSON. A table has every column in every row: fields that hold nothing go as well.

    Args:
        identity: the row's own `id`.
        messages: as a file holds them, in their order.
        tools: function descriptions, or JSON text of them; nothing, an empty list and "" are none.
    """
    kept = [
        {
            name: value
            for name, value in message.items()
            if name in _MESSAGE_FIELDS and (value is not None or name == "content")
        }
        if isinstance(message, Mapping)
        else message
        for message in messages
    ]
    fault = fault_of(kept)
    if fault is not None:
        return fault
    row: Row = {"messages": kept}
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
            json.dumps(tools, ensure_ascii=False).encode()  # JSON can spell half a character, UTF-8 cannot
        except (ValueError, RecursionError):
            return "tools that are no JSON"
    if tools and not isinstance(tools, str):
        if not _are_objects(tools):
            return "tools that are no list of objects"
        row["tools"] = tools
    if _is_deeper(row, _MOST_LEVELS):
        return "nested too deep"
    return {"id": identity if isinstance(identity, str | int) else str(identity)} | row


def said_by(messages: Sequence[Mapping[str, Any]], role: str) -> list[str]:
    """The texts of one role, in order; a call without text says nothing."""
    return [message["content"] for message in messages if message["role"] == role and message.get("content")]


def characters_of(messages: Sequence[Mapping[str, Any]]) -> int:
    """Characters of all turns."""
    return sum(len(message.get("content") or "") for message in messages)


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in cast(list[Any], value))


def _is_deeper(value: Any, levels: int) -> bool:
    if isinstance(value, Mapping):
        value = list(cast(Mapping[str, Any], value).values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in cast(list[Any], value))
