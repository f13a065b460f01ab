"""Messages to text by a tokenizer's own chat template, and the spans of that text that the assistant wrote.

Chat templates are programs: they insert system prompts, strip contents, drop earlier turns and thoughts, and most do
not mark what the assistant wrote. An answer begins where the prompt ends that the template opens for it, and ends with
the token that the template writes after an answer (`turn_end_of`). Where the template does not write its messages one
after the other, a second rendering with marked contents finds the answers. A conversation in which an answer cannot be
found, or does not follow the prompt that a model will get, is refused, never guessed.

A template can write the last answer unlike earlier ones: Qwen3's opens it with an empty `<think>` block, which neither
its prompts nor its earlier answers have. A conversation that ends with an answer without thoughts is then rendered as
the beginning of a longer one, so that the answer follows the same prompt here, in llama.cpp and in an app.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from common.errors import Code, UserError, not_found

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
Span = tuple[int, int]
"""Characters [start, end)."""

TEMPLATE_DATE = datetime(2024, 7, 26)
"""The day that a template with a date in it is told, the default of Llama 3.1's own template: the same text today and
tomorrow, in every stage. Data cards record it."""
_NEXT = {"role": "user", "content": "-"}
_THOUGHTS = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
# No template writes a private-use character, and Unicode normalisation leaves them alone.
_PRIVATE_USE = range(0xE000, 0xF900)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as its template writes it."""

    text: str
    spans: list[Span]
    """The assistant's turns in `text`, each from the end of its prompt to the end of its end token."""
    num_shortened: int
    """Answers of which the template left a part out, such as the thoughts of earlier turns."""


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
        _require_template(hf, tools)
        self._hf = hf
        self._contents = json.dumps([list(messages), list(tools or [])], ensure_ascii=False, default=str)
        self.shield = _unused(self._contents, 1)[0] if control_pattern.search(self._contents) else ""
        self.messages: list[Message] = [self._shielded(message, control_pattern) for message in messages]
        self._tools = [self._shielded(tool, control_pattern) for tool in tools] if tools else None

    def prompt(self, messages: Sequence[Message]) -> str:
        """The template's text for `messages` with the assistant's turn opened at the end."""
        return self._applied(messages, opened=True)

    def rendered(self, turn_end: str | None) -> Rendered:
        """The text of all messages and the spans of its answers, as many as there are answers.

        `turn_end` is the token that the template writes after an answer, None where it writes none. UserError for a
        template that rejects the messages, rewrites an answer or does not end it, or an answer that does not follow the
        prompt that the template opens.
        """
        text = self._text(self.messages)
        answers = [place for place, message in enumerate(self.messages) if message.get("role") == "assistant"]
        if not answers:
            return Rendered(text, [], 0)
        if turn_end is None:
            wanted = "a chat template that writes a stop token after an answer, which the model then learns"
            next_step = "end answers with the tokenizer's eos_token in the template"
            raise self._refusal("unsupported", wanted, "none after an answer", next_step)
        text, starts = self._starts(text, answers, turn_end)
        limits = [*starts[1:], len(text)]
        spans, num_shortened = list[Span](), 0
        for place, start, limit in zip(answers, starts, limits, strict=True):
            length, is_whole = self._answer_in(text[start:limit], self.messages[place], turn_end)
            spans.append((start, start + length))
            num_shortened += not is_whole
        return Rendered(text, spans, num_shortened)

    def _text(self, messages: Sequence[Message]) -> str:
        """The template's text for all messages, an answer without thoughts at the end as in a longer conversation."""
        text = self._applied(messages)
        last = messages[-1] if messages else {}
        plain = last.get("role") == "assistant" and _thoughts_and_answer(last)[0] is None
        if not plain or not _singles_out_the_last(self._hf):
            return text
        on, further = (self._applied([*messages, *[_NEXT] * count]) for count in (1, 2))
        turn, prompt = further.removeprefix(on), self._prompt_or_none(messages[:-1])
        longer = on.removesuffix(turn) if on.endswith(turn) else text
        if prompt is None or longer.startswith(prompt) or not text.startswith(prompt):
            return longer
        # The thoughts before a tool call are in the prompt for the answer, and not in a conversation that goes on.
        answer = str(last.get("content") or "").strip()
        return prompt + text[max(text.find(answer, len(prompt)), len(prompt)) :]

    def _applied(self, messages: Sequence[Message], *, opened: bool = False) -> str:
        try:
            return _applied(self._hf, messages, self._tools, opened=opened)
        except (TemplateError, TypeError, ValueError) as error:
            wanted = "messages that the chat template accepts"
            next_step = "give each message a role and a text content, the user's turn before the assistant's"
            raise UserError("unsupported", wanted=wanted, got=str(error), next_step=next_step) from error

    def _starts(self, text: str, answers: Sequence[int], turn_end: str) -> tuple[str, list[int]]:
        """The text to train on, and where each answer begins in it."""
        prompts = [self._prompt_or_none(self.messages[:place]) for place in answers]
        last = prompts[-1]
        if last is not None and not text.startswith(last):
            before = self._applied(self.messages[: answers[-1]])
            if text.startswith(before):  # else the template writes earlier messages otherwise, and not the prompt
                text = self._continued(text, last, turn_end)
        if all(prompt is not None and text.startswith(prompt) for prompt in prompts):
            return text, [len(prompt) for prompt in prompts if prompt is not None]
        return text, self._marked_starts(text)

    def _prompt_or_none(self, messages: Sequence[Message]) -> str | None:
        try:
            return self.prompt(messages)
        except UserError:  # a template may refuse a part of a conversation
            return None

    def _continued(self, text: str, prompt: str, turn_end: str) -> str:
        """The text of a template whose prompt opens the thoughts, which it leaves out of finished answers.

        The last answer, with its thoughts, then follows the opened prompt: a model that is asked gets nothing else.
        """
        written = next((place for place, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), len(text))
        opening, content = prompt[written:], str(self.messages[-1].get("content") or "")
        thoughts, answer = _thoughts_and_answer(self.messages[-1])
        if thoughts is not None and not content.startswith(opening):
            content = f"<think>\n{thoughts}\n</think>\n\n{answer}"
        end = text.find(turn_end, written)
        if thoughts is None or not content.startswith(opening) or end < 0:
            wanted = "answers that follow the prompt that the chat template opens"
            got = f"a prompt that ends with {opening[-40:]!r}, and an answer that does not go on from there"
            next_step = (
                "give the answers' reasoning_content, or take a template that writes answers as it asks for them"
            )
            raise self._refusal("mismatch", wanted, got, next_step)
        return prompt + content[len(opening) :] + text[end:]

    def _marked_starts(self, text: str) -> list[int]:
        """Render again, with each assistant content between two unused characters."""
        left, right = _unused(self._contents + text, 2)
        for clean in (str, str.strip):  # many templates strip the content, which a marker would prevent
            marked = [
                {**message, "content": left + clean(message.get("content") or "") + right}
                if message.get("role") == "assistant"
                else message
                for message in self.messages
            ]
            found = self._text(marked)
            if found.replace(left, "").replace(right, "") == text:
                # Without the markers before it.
                return [piece.start() - 2 * number for number, piece in enumerate(re.finditer(left, found))]
        raise self._rewritten()

    def _answer_in(self, part: str, message: Message, turn_end: str) -> tuple[int, bool]:
        """Characters of the answer with its end at the beginning of `part`, and whether all of it is there.

        `part` may go on with later messages.
        """
        content = str(message.get("content") or "").strip()
        thoughts, answer = _thoughts_and_answer(message)
        found = next((piece for piece in (content, answer.strip()) if piece in part), None)
        if found is None:
            raise self._rewritten()
        length = part.find(turn_end, part.index(found) + len(found))
        if length < 0 or not part[:length].strip():
            wanted, next_step = "an end after each answer", "use a template that writes every answer alike"
            got = "an answer that the chat template leaves empty" if length >= 0 else f"an answer without {turn_end}"
            raise self._refusal("unsupported", wanted, got, next_step)
        if found == content and message.get("reasoning_content") is None:
            return length + len(turn_end), True
        before = part[: part.rindex(found, 0, length)]
        is_whole = thoughts is None or (bool(thoughts.strip()) and thoughts.strip() in before)
        return length + len(turn_end), is_whole

    def _rewritten(self) -> UserError:
        wanted, got = "a chat template that writes the assistant's content unchanged", "one that rewrites it"
        return self._refusal(
            "unsupported", wanted, got, "use a template whose assistant turns can be found in the rendered text"
        )

    def _refusal(self, code: Code, wanted: str, got: str, next_step: str) -> UserError:
        return UserError(code, wanted=wanted, got=f"{got}, in {self._hf.name_or_path}", next_step=next_step)

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


def turn_end_of(hf: "PreTrainedTokenizerFast", added_pattern: re.Pattern[str]) -> str | None:
    """The token that the chat template writes after an answer, by rendering one; None where it writes none.

    `added_pattern` finds the tokenizer's added tokens. Between the answer and the token may be blanks only.
    """
    marker = chr(_PRIVATE_USE[0])
    if hf.chat_template is None:
        return None
    try:
        text = _applied(hf, [_NEXT, {"role": "assistant", "content": marker}])
    except (TemplateError, TypeError, ValueError):
        return None
    after = text.partition(marker)[2]
    found = added_pattern.search(after)
    return found[0] if found and not after[: found.start()].strip() else None


@lru_cache(maxsize=8)
def has_date(hf: "PreTrainedTokenizerFast") -> bool:
    """Whether a chat template of the tokenizer asks for the date."""
    templates = hf.chat_template if isinstance(hf.chat_template, dict) else {"default": hf.chat_template or ""}
    return any("strftime_now" in template for template in templates.values())


def _require_template(hf: "PreTrainedTokenizerFast", tools: Sequence[Tool] | None) -> None:
    template = hf.chat_template
    if template is None:
        next_step = "put the model's chat_template.jinja into the folder"
        raise not_found("a tokenizer with a chat template", f"none in {hf.name_or_path}", next_step=next_step)
    if isinstance(template, dict) and "default" not in template and not (tools and "tool_use" in template):
        got = f"only {', '.join(template)} in {hf.name_or_path}"
        next_step = "name the one to use `default`, or write it into chat_template.jinja"
        raise not_found("a chat template of the name `default`", got, next_step=next_step)


def _thoughts_and_answer(message: Message) -> tuple[str | None, str]:
    """The thoughts of an answer, None where it has none, and what comes after them."""
    content, thoughts = str(message.get("content") or ""), message.get("reasoning_content")
    if isinstance(thoughts, str) and thoughts.strip():
        return thoughts, content
    found = _THOUGHTS.match(content)
    return (found[1].strip("\n"), content[found.end() :]) if found else (None, content)


def apply_template(
    template: str,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    opened: bool,
    tokens: Mapping[str, Any],
) -> str:
    """The text that a chat template writes for messages, with the assistant's turn `opened` at the end or not.

    `tokens` are the names that the template has for special tokens, such as `bos_token`. jinja2's TemplateError,
    TypeError or ValueError where the template refuses the messages.
    """
    from transformers.utils import chat_template_utils

    if "strftime_now" in template:
        # The library keeps compiled templates, and lets no caller pass a function to one.
        compiled: Any = chat_template_utils._compile_jinja_template(template)  # pyright: ignore[reportPrivateUsage]
        compiled.globals["strftime_now"] = TEMPLATE_DATE.strftime
    # A template can take an absent field, and write an empty one as `None`.
    filled = [{name: value for name, value in message.items() if value is not None} for message in messages]
    options: dict[str, Any] = {"tools": None if tools is None else list(tools), "chat_template": template, **tokens}
    texts, _ = chat_template_utils.render_jinja_template([filled], add_generation_prompt=opened, **options)
    return texts[0]


def _applied(
    hf: "PreTrainedTokenizerFast",
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    opened: bool = False,
) -> str:
    template = hf.get_chat_template(tools=tools)  # pyright: ignore[reportArgumentType]
    return apply_template(template, messages, tools, opened=opened, tokens=hf.special_tokens_map)


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
