"""Messages to text by a tokenizer's own chat template, and the spans of that text that the assistant wrote.

Chat templates are programs: they insert system prompts, strip contents and drop earlier turns, and most do not mark
what the assistant wrote. The spans are found by a second rendering (without the later messages, or with marked
contents) and a comparison of the texts; what differs is refused, never guessed.

A template can write the last answer unlike earlier ones: Qwen3's opens it with an empty `<think>` block, which neither
its prompts nor its earlier answers have. A conversation that ends with an answer is then rendered as the beginning of a
longer one, so that the answer follows the same prompt here, in llama.cpp and in an app.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from common.errors import UserError, not_found

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
Span = tuple[int, int]
"""Characters [start, end)."""

_NEXT = {"role": "user", "content": "-"}
# No template writes a private-use character, and Unicode normalisation leaves them alone.
_PRIVATE_USE = range(0xE000, 0xF900)


class Conversation:
    """Messages and tools with every control-token string broken up, and the template that renders them.

    Attributes:
        messages: the given ones, with `shield` after the first character of each control-token string.
        shield: a character that occurs nowhere else and is not part of the text; "" if no string needs it.
    """

    def __init__(
        self,
        hf: "PreTrainedTokenizerFast",
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        control_pattern: re.Pattern[str],
    ) -> None:
        if hf.chat_template is None:
            next_step = "put the model's chat_template.jinja into the folder"
            raise not_found("a tokenizer with a chat template", f"none in {hf.name_or_path}", next_step=next_step)
        self._hf = hf
        self._contents = json.dumps([list(messages), list(tools or [])], ensure_ascii=False, default=str)
        self.shield = _unused(self._contents, 1)[0] if control_pattern.search(self._contents) else ""
        self.messages: list[Message] = [self._shielded(message, control_pattern) for message in messages]
        self._tools = [self._shielded(tool, control_pattern) for tool in tools] if tools else None

    def text(self, messages: Sequence[Message], *, opened: bool = False) -> str:
        """The template's text for `messages`, its last answer written as in a longer conversation.

        With `opened`, the assistant's turn is opened at the end.
        """
        try:
            text = _applied(self._hf, messages, self._tools, opened=opened)
            ends_with_answer = not opened and bool(messages) and messages[-1].get("role") == "assistant"
            if ends_with_answer and _singles_out_the_last(self._hf):
                on, further = (_applied(self._hf, [*messages, *[_NEXT] * count], self._tools) for count in (1, 2))
                turn = further.removeprefix(on)
                return on.removesuffix(turn) if on.endswith(turn) else text
            return text
        except (TemplateError, TypeError, ValueError) as error:
            wanted = "messages that the chat template accepts"
            next_step = "give each message a role and a text content, the user's turn before the assistant's"
            raise UserError("unsupported", wanted=wanted, got=str(error), next_step=next_step) from error

    def assistant_spans(self, text: str, *, turn_end: str) -> list[Span]:
        """The spans of the assistant's turns, content and `turn_end`, in `text`, the rendering of all messages.

        UserError if the template rewrites the assistant's content, so that it cannot be found.
        """
        spans = self._by_prefix(text, turn_end)
        return self._by_markers(text, turn_end) if spans is None else spans

    def _by_prefix(self, text: str, turn_end: str) -> list[Span] | None:
        """A turn starts at the end of the conversation before it, rendered with the assistant's turn opened.

        None if the template does not write its messages one after the other.
        """
        spans: list[Span] = []
        for index, message in enumerate(self.messages):
            if message.get("role") != "assistant":
                continue
            try:
                opened = self.text(self.messages[:index], opened=True)
                closed = self.text(self.messages[: index + 1])
            except UserError:
                return None
            if not (text.startswith(closed) and closed.startswith(opened)):
                return None
            end = closed.rfind(turn_end, len(opened))
            spans.append((len(opened), len(closed) if end < 0 else end + len(turn_end)))
        return spans

    def _by_markers(self, text: str, turn_end: str) -> list[Span]:
        """Render again, with each assistant content between two unused characters."""
        left, right = _unused(self._contents + text, 2)
        for clean in (str, str.strip):  # many templates strip the content, which a marker would prevent
            marked = [
                {**message, "content": left + clean(message.get("content") or "") + right}
                if message.get("role") == "assistant"
                else message
                for message in self.messages
            ]
            found = self.text(marked)
            if found.replace(left, "").replace(right, "") == text:
                spans: list[Span] = []
                for number, piece in enumerate(re.finditer(f"{left}(.*?){right}", found, re.DOTALL)):
                    start = piece.start() - 2 * number  # without the markers before it
                    closing = re.match(r"\s*" + re.escape(turn_end), found[piece.end() :])
                    spans.append((start, start + len(piece[1]) + (closing.end() if closing else 0)))
                return spans
        wanted = "a chat template that writes the assistant's content unchanged"
        got = f"one that rewrites it in {self._hf.name_or_path}"
        next_step = "use a template whose assistant turns can be found in the rendered text"
        raise UserError("unsupported", wanted=wanted, got=got, next_step=next_step)

    def _shielded(self, value: Any, pattern: re.Pattern[str]) -> Any:
        if not self.shield:
            return value
        if isinstance(value, str):
            return pattern.sub(lambda found: found[0][0] + self.shield + found[0][1:], value)
        if isinstance(value, Mapping):
            return {self._shielded(key, pattern): self._shielded(item, pattern) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self._shielded(item, pattern) for item in value]
        return value


def _applied(
    hf: "PreTrainedTokenizerFast",
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    opened: bool = False,
) -> str:
    options: dict[str, Any] = {"tools": tools, "tokenize": False, "add_generation_prompt": opened}
    return str(hf.apply_chat_template(list(messages), **options))  # pyright: ignore[reportArgumentType]


@lru_cache(maxsize=8)
def _singles_out_the_last(hf: "PreTrainedTokenizerFast") -> bool:
    """Whether the template writes the last answer differently, and renders a conversation that goes on after it."""
    exchange = [_NEXT, {"role": "assistant", "content": "-"}]
    try:
        alone, on, further = (_applied(hf, [*exchange, *[_NEXT] * count]) for count in (0, 1, 2))
    except (TemplateError, TypeError, ValueError):  # for one, it refuses two of the user's messages in a row
        return False
    return not on.startswith(alone) and further.startswith(on) and on.endswith(further.removeprefix(on))


def _unused(text: str, count: int) -> list[str]:
    """`count` private-use characters that do not occur in `text`."""
    free = (chr(code) for code in _PRIVATE_USE if chr(code) not in text)
    return [next(free) for _ in range(count)]
