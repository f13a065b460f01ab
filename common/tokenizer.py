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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Encoding

from common.errors import UserError, damaged, not_found
from common.rendering import Conversation, Message, Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The files of a tokenizer; a model folder can hold any subset with tokenizer.json.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)


class Tokenizer:
    """A tokenizer folder in memory.

    Attributes:
        folder: the folder that it was loaded from.
        size: number of ids (a model can have more logit rows).
        document_end_id: closes a document: `<|endoftext|>` if it exists, else the end-of-sequence token.
        turn_end_id: closes a chat turn: `<|im_end|>` if it exists, else the end-of-sequence token.
        stop_ids: both, without repetition; generation stops at each of them.
        sha256: identity of vocabulary, merges, normaliser, pre-tokenizer, added tokens and chat template.
    """

    def __init__(self, folder: Path, hf: "PreTrainedTokenizerFast") -> None:
        self.folder = folder
        self._hf = hf
        self._backend = hf.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.size = len(hf)
        added = self._backend.get_added_tokens_decoder()
        self._control_ids = {token.content: index for index, token in added.items() if token.special}
        longest_first = sorted((token for token in self._control_ids if len(token) > 1), key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.document_end_id = self._id_or_eos("<|endoftext|>")
        self.turn_end_id = self._id_or_eos("<|im_end|>")
        self.stop_ids = tuple(dict.fromkeys((self.turn_end_id, self.document_end_id)))
        self._turn_end = str(self._backend.id_to_token(self.turn_end_id))
        self.sha256 = self._identity()

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Load a Hugging Face tokenizer folder, without a download; UserError without tokenizer.json or if damaged."""
        if not (folder / "tokenizer.json").is_file():
            next_step = "give the folder that `python -m distill tokenizer` or a model export wrote"
            what, got = "a tokenizer folder with tokenizer.json", f"no such file in {folder}"
            raise not_found(what, got, next_step=next_step)
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exception on a malformed file
            got = f"{folder}: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            next_step = "make the folder again: tokenizer.json or tokenizer_config.json is damaged"
            raise damaged("a readable Hugging Face tokenizer", got, next_step=next_step) from error
        if not isinstance(hf, PreTrainedTokenizerFast):
            got = f"{type(hf).__name__} in {folder}"
            raise UserError("unsupported", wanted="a tokenizer with tokenizer.json", got=got, next_step="convert it")
        return cls(folder, hf)

    def tokens(self) -> list[str]:
        """The token of every id, as the vocabulary spells it."""
        return [str(self._backend.id_to_token(index)) for index in range(self.size)]

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files, byte for byte, into `folder` (made if absent)."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
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
        conversation = Conversation(self._hf, messages, tools, self._control_pattern)
        text = conversation.text(conversation.messages)
        ids, offsets = self._encode_rendered(text, conversation.shield)
        mask = [0] * len(ids)
        place = 0
        for start, end in conversation.assistant_spans(text, turn_end=self._turn_end):
            if conversation.shield:  # the offsets of the ids do not count it
                start, end = (edge - text.count(conversation.shield, 0, edge) for edge in (start, end))
            while place < len(ids) and offsets[place][0] < start:
                place += 1
            while place < len(ids) and offsets[place][0] < end:
                mask[place] = 1
                place += 1
        return ids, mask

    def render_prompt(self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None) -> list[int]:
        """Ids of a conversation with the assistant's turn opened, for a model to continue."""
        conversation = Conversation(self._hf, messages, tools, self._control_pattern)
        return self._encode_rendered(conversation.text(conversation.messages, opened=True), conversation.shield)[0]

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

    def _id_or_eos(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        found = self._hf.eos_token_id if found is None else found
        if not isinstance(found, int):
            what, next_step = f"{token} or an end-of-sequence token", "set eos_token in tokenizer_config.json"
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
