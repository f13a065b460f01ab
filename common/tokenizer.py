"""The one tokenizer and the one chat renderer: text and messages to token ids and a loss mask.

Every stage loads a Hugging Face tokenizer folder with `Tokenizer.load`, so that a text has the same ids in training,
calibration and evaluation. No beginning-of-text token is implied: the ids are what the template writes. Two rules hold
everywhere. A control token (`special` in the tokenizer's files) is never made from the text of a user or a document:
`<|im_end|>` inside a message is encoded as plain pieces, as llama.cpp does with `parse_special` off. `render` equals
the tokenizer's own `apply_chat_template`, token for token, if no message holds such text and the template writes the
last answer as it writes the others (`common.rendering` has the other case). Independent of stages, models and packing.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Encoding

from common.errors import UserError, damaged, not_found
from common.rendering import TEMPLATE_DATE, Conversation, Message, Tool, has_date, turn_end_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The files of a tokenizer; a model folder can hold any subset with tokenizer.json.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)
_MORE_TEMPLATES = "additional_chat_templates"
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")
PROBE = (
    "吾輩は猫である。名前はまだ無い。\n\n  リンゴを3個、1234567円で買った！？（税込）\t「東京」へ行く…\r\n"  # noqa: RUF001
    "ﾊﾝｶｸとＦＵＬＬ、がぎぐ゛ヴ々〆ヶ。 I'm sure we'LL see 3.14 of them --- don't you?\n   \n"
    "नमस्ते 안녕하세요 สวัสดี é ñ \u200d👩‍👩‍👧🚀 x=foo_bar(10**9);  // ok"
)
"""What tokenizers disagree on: runs of digits, spaces and newlines, contractions, marks, emoji, width and scripts."""


class Tokenizer:
    """A tokenizer folder in memory.

    Attributes:
        folder: the folder that it was loaded from.
        size: the largest id + 1 (a model can have more logit rows, and a vocabulary can have holes).
        document_end_id: closes a document: `<|endoftext|>` or `<|end_of_text|>` if there is one, else the
            end-of-sequence token.
        turn_end_id: closes a chat turn: the token that the chat template writes after an answer; without one the
            end-of-sequence token.
        stop_ids: both, the end-of-sequence token, and those that `generation_config.json` and `config.json` of the
            folder name, each once; generation stops at each of them.
        template_date: the day that a chat template with a date in it is told, None for one without.
        bos_id, eos_id, padding_id: the special tokens that the settings name, None where they name none.
        sha256: identity of vocabulary, merges, normaliser, pre-tokenizer, added tokens and chat templates.
    """

    def __init__(self, folder: Path, hf: "PreTrainedTokenizerFast") -> None:
        self.folder = folder
        self._hf = hf
        self._backend = hf.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        added = self._backend.get_added_tokens_decoder()
        self._control_ids = {token.content: index for index, token in added.items() if token.special}
        self._control_pattern = _any_of(token for token in self._control_ids if len(token) > 1)
        named = (hf.bos_token_id, hf.eos_token_id, hf.pad_token_id)
        self.bos_id, self.eos_id, self.padding_id = (index if isinstance(index, int) else None for index in named)
        ends = [token.content for token in added.values()] + ([] if self.eos_id is None else [str(hf.eos_token)])
        self._turn_end = turn_end_of(hf, _any_of(ends))
        document_ends = [self._backend.token_to_id(token) for token in _DOCUMENT_ENDS]
        self.document_end_id = self._first([*document_ends, self.eos_id])
        turn_end = None if self._turn_end is None else self._backend.token_to_id(self._turn_end)
        self.turn_end_id = self._first([turn_end, self.eos_id, self.document_end_id])
        stops = (self.turn_end_id, self.document_end_id, self.eos_id, *_stops_in(folder, added))
        self.stop_ids = tuple(dict.fromkeys(stop for stop in stops if stop is not None))
        self.template_date = TEMPLATE_DATE.date().isoformat() if has_date(hf) else None
        self.sha256 = self._identity()

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Load a Hugging Face tokenizer folder, without a download: the ids are those of its `tokenizer.json`.

        UserError without tokenizer.json or if damaged, and for one that transformers would read otherwise.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            next_step = "give the folder that `python -m distill tokenizer` or a model export wrote"
            what, got = "a tokenizer folder with tokenizer.json", f"no such file in {folder}"
            raise not_found(what, got, next_step=next_step)
        from tokenizers import Tokenizer as Backend
        from transformers import PreTrainedTokenizerFast

        try:
            raw = Backend.from_file(str(file))
            # Not AutoTokenizer: it rebuilds the tokenizer by the class that a config names, and gives other ids.
            hf = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exception on a malformed file
            got = f"{folder}: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            next_step = "make the folder again: tokenizer.json or tokenizer_config.json is damaged"
            raise damaged("a readable Hugging Face tokenizer", got, next_step=next_step) from error
        for token in json.loads(file.read_text(encoding="utf-8")).get("added_tokens") or ():
            if (index := hf.backend_tokenizer.token_to_id(token["content"])) != token["id"]:
                wanted, got = f"the ids of {file}", f"{index} for {token['content']}, which it calls {token['id']}"
                next_step = "write its added tokens into the vocabulary too, with their ids"
                raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)
        if hf.backend_tokenizer.encode(PROBE, add_special_tokens=False).ids != _plain_ids(raw, PROBE):
            wanted, got = f"the ids of {file}", "others for a probe text, by the settings beside it"
            next_step = "correct tokenizer_config.json, or remove what changes the tokenizer"
            raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)
        return cls(folder, hf)

    def tokens(self) -> list[str | None]:
        """The token of every id, as the vocabulary spells it; None for an id without a token."""
        return [self._backend.id_to_token(index) for index in range(self.size)]

    def described(self) -> dict[str, Any]:
        """The content of tokenizer.json, with the added tokens that stand only in tokenizer_config.json."""
        return json.loads(self._backend.to_str())

    @property
    def chat_templates(self) -> dict[str, str]:
        """The chat templates by name; `default` is the one of a tokenizer with a single template."""
        template = self._hf.chat_template
        return template if isinstance(template, dict) else {} if template is None else {"default": template}

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files, byte for byte, into `folder` (made if absent)."""
        more = sorted(path.relative_to(self.folder) for path in self.folder.glob(f"{_MORE_TEMPLATES}/*.jinja"))
        for name in (*map(Path, TOKENIZER_FILES), *more):
            if (self.folder / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, folder / name)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; control-token strings in it are plain text."""
        return self._encode(text, control=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """`.ids` of many texts as `encode` returns them, in parallel, and `.offsets`: characters [start, end) of each.

        Tokens that share one character (byte-level pieces of it) have the whole span of that character.
        """
        self._backend.encode_special_tokens = True
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not valid UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids of a whole conversation and its loss mask.

        The mask is 1 exactly on what the template writes between an opened assistant turn and its end token, and on
        that token. A token that begins before the content (a newline of the turn's header that merges with a newline at
        the start of the content) is 0: a part of it belongs to the prompt.

        `messages` are `{role, content}`, in the order of the conversation; `tools` are function descriptions for the
        template. UserError without a chat template, or with one that rejects or rewrites these messages.
        """
        ids, mask, _ = self.render_counted(messages, tools=tools)
        return ids, mask

    def render_counted(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None
    ) -> tuple[list[int], list[int], int]:
        """As `render`, and the number of answers of which the template left out a part."""
        conversation = Conversation(self._hf, messages, tools, self._control_pattern)
        rendered = conversation.rendered(self._turn_end)
        text = rendered.text
        ids, offsets = self._encode_rendered(text, conversation.shield)
        mask = [0] * len(ids)
        place = 0
        for start, end in rendered.spans:
            if conversation.shield:  # the offsets of the ids do not count it
                start, end = (edge - text.count(conversation.shield, 0, edge) for edge in (start, end))
            while place < len(ids) and offsets[place][0] < start:
                place += 1
            while place < len(ids) and offsets[place][0] < end:
                mask[place] = 1
                place += 1
        return ids, mask, rendered.num_shortened

    def render_prompt(self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None) -> list[int]:
        """Ids of a conversation with the assistant's turn opened, for a model to continue."""
        conversation = Conversation(self._hf, messages, tools, self._control_pattern)
        return self._encode_rendered(conversation.prompt(conversation.messages), conversation.shield)[0]

    def _encode(self, text: str, *, control: bool) -> Encoding:
        self._backend.encode_special_tokens = not control
        return self._backend.encode(text, add_special_tokens=False)

    def _encode_rendered(self, text: str, shield: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of a rendered conversation without the `shield` that breaks up control strings."""
        if not shield:
            whole = self._encode(text, control=True)
            return whole.ids, whole.offsets
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        begin = 0
        for piece in re.split(f"({self._control_pattern.pattern})", text):
            if piece in self._control_ids:
                ids.append(self._control_ids[piece])
                offsets.append((begin, begin + len(piece)))
            else:
                piece = piece.replace(shield, "")
                encoding = self._encode(piece, control=False)
                ids += encoding.ids
                offsets += [(begin + start, begin + end) for start, end in encoding.offsets]
            begin += len(piece)
        return ids, offsets

    def _first(self, candidates: Sequence[int | None]) -> int:
        found = next((index for index in candidates if index is not None), None)
        if found is None:
            what, next_step = (
                f"{_DOCUMENT_ENDS[0]} or an end-of-sequence token",
                "set eos_token in tokenizer_config.json",
            )
            raise not_found(what, f"neither in {self.folder}", next_step=next_step)
        return found

    def _identity(self) -> str:
        # Only what determines ids: other versions of the libraries write the rest of the file differently.
        whole = json.loads(self._backend.to_str())
        parts = {name: whole[name] for name in ("normalizer", "pre_tokenizer", "decoder", "added_tokens")}
        kept = ("type", "vocab", "merges", "byte_fallback", "ignore_merges")
        parts |= {name: whole["model"].get(name) for name in kept}
        parts |= {"chat_template": self._hf.chat_template, "ends": [self.document_end_id, self.turn_end_id]}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of these strings, the longest first."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _plain_ids(backend: Any, text: str) -> list[int]:
    backend.no_truncation()
    backend.no_padding()
    return backend.encode(text, add_special_tokens=False).ids


def _stops_in(folder: Path, added: Mapping[int, Any]) -> list[int]:
    """The end tokens that a model folder names; an id of plain text, a default of a config's class, is none."""
    stops: list[int] = []
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            try:
                named = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise damaged(f"a JSON object in {folder / name}", error) from error
            stops += named if isinstance(named, list) else [named]
    return [stop for stop in stops if stop in added]
