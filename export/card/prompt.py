"""The prompt format of a GGUF file: its own chat template, an example of it, and an Ollama `Modelfile`.

Everything is read from the file that a user loads, not from the checkpoint. Whether the template is ChatML is found by
rendering conversations and comparing texts, never by the model's name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import TemplateError

from common.errors import UserError
from common.gguf_header import read_header
from common.rendering import apply_template
from export.vocabulary import ENDS

Message = Mapping[str, str]

# In Ollama's own language. The prompt ends with an opened assistant turn, or continues a last answer that is begun.
_GO_TEMPLATE = """\
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
<|im_start|>{{ .Role }}
{{ .Content }}{{ if not (and $last (eq .Role "assistant")) }}<|im_end|>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant
{{ end }}
{{- end }}"""
_USER, _SYSTEM = {"role": "user", "content": "question"}, {"role": "system", "content": "instruction"}
_TURNS = (_USER, {"role": "assistant", "content": "answer"}, {"role": "user", "content": "another"})
_PREFERRED = ("Q5_K_M", "Q4_K_M")
_UNQUANTISED = ("F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """The prompt format of one GGUF file."""

    example: str | None
    """A question as the template renders it, the answer opened; None without a template, or where it refuses."""
    is_chatml: bool
    """Whether the template gives ChatML for all conversations that were tried."""
    default_system: str | None
    """The system prompt that a ChatML template inserts where a conversation has none."""
    stop: tuple[str, ...]
    """The tokens that end an answer."""


def encoding_of(name: str) -> str:
    """The encoding in a file's name, `<stem>-<encoding>.gguf`."""
    return name.removesuffix(".gguf").rpartition("-")[2]


def recommended(names: Sequence[str]) -> str | None:
    """The GGUF file to begin with: a medium encoding, else the first quantised one, else any; None without files."""
    by_encoding = {encoding_of(name): name for name in reversed(names)}
    quantised = [name for name in names if encoding_of(name) not in _UNQUANTISED]
    preferred = [by_encoding[encoding] for encoding in _PREFERRED if encoding in by_encoding]
    return next(iter([*preferred, *quantised, *names]), None)


def read_prompt(path: Path, messages: Sequence[Message]) -> Prompt:
    """The template and the stop tokens of a GGUF file, with `messages` as its example.

    Raises:
        UserError: not a GGUF file.
    """
    fields = read_header(path).fields
    tokens: list[str] = fields.get("tokenizer.ggml.tokens", [])
    ids = {name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eos", "eom", "bos")}
    named = {name: tokens[index] for name, index in ids.items() if index is not None and index < len(tokens)}
    known = [end for end in ENDS if end in tokens]
    stop = tuple(dict.fromkeys([*(named[name] for name in ("eot", "eos", "eom") if name in named), *known]))
    template = fields.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return Prompt(example=None, is_chatml=False, default_system=None, stop=stop)
    rendered = partial(_rendered, template, {f"{name}_token": named.get(name, "") for name in ("bos", "eos")})
    is_chatml, default = _compare_with_chatml(rendered)
    return Prompt(example=rendered(messages), is_chatml=is_chatml, default_system=default, stop=stop)


def modelfile(name: str, prompt: Prompt, *, system: str | None, parameters: Mapping[str, float]) -> str:
    """An Ollama `Modelfile` for the GGUF file `name` in the same folder, whose template is ChatML.

    Where `system` is None, the template's own system prompt is taken. `parameters` are sampling by Ollama's names.

    Raises:
        UserError: a system prompt that `check_system` refuses.
    """
    assert prompt.is_chatml
    system = prompt.default_system if system is None else system
    lines = [f"FROM ./{name}", f'TEMPLATE """{_GO_TEMPLATE}"""']
    if system:
        check_system(system)
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{token}"' for token in prompt.stop]
    lines += [f"PARAMETER {parameter} {value:g}" for parameter, value in parameters.items()]
    return "\n".join(lines) + "\n"


def check_system(text: str) -> None:
    """UserError ("unsupported") for a system prompt that a Modelfile cannot hold."""
    if '"""' in text or text.endswith('"'):
        wanted = 'a system prompt without """ in it or " at its end, which a Modelfile cannot hold'
        next_step = "use other quotation marks in card.system_prompt of the recipe"
        raise UserError("unsupported", wanted=wanted, got=repr(text), next_step=next_step)


def chatml(messages: Sequence[Message]) -> str:
    """A conversation in ChatML with the assistant's turn opened."""
    turns = (f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def _compare_with_chatml(rendered: Callable[[Sequence[Message]], str | None]) -> tuple[bool, str | None]:
    """Whether a template is ChatML, and the system prompt that it inserts by itself."""
    alone = rendered([_USER]) or ""
    found = re.fullmatch(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n" + re.escape(chatml([_USER])), alone, re.DOTALL)
    default_system = found[1] if found else None
    own = [{"role": "system", "content": default_system}] if default_system is not None else []
    is_chatml = all(
        rendered([*before, *turns]) == chatml([*meant, *turns])
        for turns in ([_USER], _TURNS)
        for before, meant in (([], own), ([_SYSTEM], [_SYSTEM]))
    )
    return is_chatml, default_system if is_chatml else None


def _rendered(template: str, tokens: Mapping[str, str], messages: Sequence[Message]) -> str | None:
    """The template's text with the assistant's turn opened; None where it refuses the messages."""
    try:
        return apply_template(template, messages, opened=True, tokens=tokens)
    except (TemplateError, TypeError, ValueError):
        return None
