"""What a GGUF file says about text: its tokenizer, its special tokens, its jinja chat template.

Used inside the child process of `eval.runtimes.llama_process`. No Python tokenizer is involved: ids come from
llama.cpp, and only the template is rendered here, as llama.cpp's own server does.
"""

import ctypes
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from common.errors import Code
from common.rendering import TEMPLATE_DATE
from eval.runtimes.protocol import Message

# What llama.cpp makes of a text only where it parses special tokens.
_CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
_LONGEST_PIECE_BYTES = 1024
# No template writes one of these characters.
_PRIVATE_USE = range(0xE000, 0xF900)


class LlamaError(Exception):
    """A failure inside the child, of which the parent makes a UserError of this code."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code: Code = code


class FileText:
    """Tokenizer and template of a loaded model."""

    def __init__(self, model: Any) -> None:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        assert vocabulary is not None
        self._model, self._vocab = model, vocabulary
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        ids = [i for i in range(self.vocabulary) if llama_cpp.llama_vocab_get_attr(vocabulary, i) & _CONTROL]
        self._control = {text: i for i in ids if (text := self.decode([i], skip_special=False))}
        # The longest first, so that none hides in another.
        self._control_pattern = "|".join(map(re.escape, sorted(self._control, key=lambda text: -len(text)))) or r"(?!)"

    def facts(self) -> dict[str, int]:
        """`context_tokens`, `vocabulary` and `document_end_id` of the file."""
        end: Any = self._control.get("<|endoftext|>", llama_cpp.llama_vocab_eos(self._vocab))
        return {
            "context_tokens": llama_cpp.llama_model_n_ctx_train(self._model),
            "vocabulary": self.vocabulary,
            "document_end_id": end,
        }

    def is_end(self, token: int) -> bool:
        """Whether the file says that a generation ends with this token."""
        return llama_cpp.llama_vocab_is_eog(self._vocab, token)

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Ids of text; control tokens written in it are made only if `control`."""
        raw = text.encode()
        room = len(raw) + 8  # a byte-level vocabulary never needs more tokens than bytes
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), buffer, room, False, control)
        if count < 0:
            raise LlamaError("failed", "its tokenizer fails on a text")
        return list(buffer[:count])

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids; incomplete UTF-8 becomes U+FFFD."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        room = 16 * len(ids) + 64
        while True:
            buffer: Any = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_detokenize(self._vocab, tokens, len(ids), buffer, room, False, not skip_special)
            if count >= 0:
                return buffer.raw[:count].decode(errors="replace")
            room = -count

    def piece(self, token: int) -> bytes:
        """Bytes of one token, which may be a part of a character; none for a control token."""
        buffer: Any = ctypes.create_string_buffer(_LONGEST_PIECE_BYTES)
        count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, _LONGEST_PIECE_BYTES, 0, False)
        return buffer.raw[: max(count, 0)]

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation by the file's template; control tokens that are spelt in a message are plain text."""
        values = [value for message in messages for value in message.values() if isinstance(value, str)]
        free = (chr(code) for code in _PRIVATE_USE if not any(chr(code) in value for value in values))
        found = dict.fromkeys(text for value in values for text in re.findall(self._control_pattern, value))
        marks = {text: next(free) for text in found}

        def marked(value: Any) -> Any:
            is_text = isinstance(value, str)
            return re.sub(self._control_pattern, lambda spelling: marks[spelling[0]], value) if is_text else value

        safe: Any = [{key: marked(value) for key, value in message.items()} for message in messages]
        prompt = self._formatter(messages=safe).prompt
        if not marks:
            return self.encode(prompt, control=True)
        spelt, ids = {ord(mark): text for text, mark in marks.items()}, list[int]()
        for piece in re.split(f"({self._control_pattern})", prompt):
            ids += [self._control[piece]] if piece in self._control else self.encode(piece.translate(spelt))
        return ids

    @cached_property
    def _formatter(self) -> Jinja2ChatFormatter:
        template = llama_cpp.llama_model_chat_template(self._model, None)
        if template is None:
            raise LlamaError("wrong-format", "it holds no chat template")
        ends: list[Any] = [llama_cpp.llama_vocab_eos(self._vocab), llama_cpp.llama_vocab_bos(self._vocab)]
        eos, bos = (self.decode([token], skip_special=False) if token >= 0 else "" for token in ends)
        return _Formatter(template=template.decode(), eos_token=eos, bos_token=bos)


class _Formatter(Jinja2ChatFormatter):
    """Tells a template the day that training told it."""

    @staticmethod
    def strftime_now(f: str) -> str:
        return TEMPLATE_DATE.strftime(f)
