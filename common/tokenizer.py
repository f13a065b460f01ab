"""The one tokenizer and the one chat renderer: text and messages in, token ids (and what is supervised) out.

Every stage reads a Hugging Face tokenizer folder through `Tokenizer.load`, so that a text has the same ids in training,
calibration and evaluation. Ids never carry an implied beginning-of-text token: what a template writes is what there is.
Two rules hold everywhere. A control token (`special` in the tokenizer's files) is never made from text that a user or a
document brought: `<|im_end|>` inside a message is spelt out in plain pieces, as llama.cpp does with `parse_special`
off. And `render` equals the tokenizer's own `apply_chat_template`, token for token, where no message holds such text
and the template writes the last answer as it writes the others (`common.rendering` tells what is done elsewhere).

It knows no stage, no model and no packing.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Encoding

from common.errors import UserError
from common.rendering import Conversation, Message, Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The files that together are a tokenizer; a model folder may hold any subset that contains tokenizer.json.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


class Tokenizer:
    """A tokenizer folder in memory.

    Attributes:
        folder: where it was read from.
        size: number of ids it can produce (a model may own more logit rows).
        document_end_id: closes a document: `<|endoftext|>` if there is one, else the end-of-sequence token.
        turn_end_id: closes a chat turn: `<|im_end|>` if there is one, else the end-of-sequence token.
        stop_ids: both, without repetition; generation stops at any of them.
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
        self._control_pattern = _any_of(sorted(self._control_ids, key=len, reverse=True))
        self.document_end_id = self._id_or_eos("<|endoftext|>")
        self.turn_end_id = self._id_or_eos("<|im_end|>")
        self.stop_ids = tuple(dict.fromkeys((self.turn_end_id, self.document_end_id)))
        self._turn_end = str(self._backend.id_to_token(self.turn_end_id))
        self.sha256 = self._identity()

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads a Hugging Face tokenizer folder; UserError when it is absent or broken. Nothing is fetched."""
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                wanted="a tokenizer folder with tokenizer.json",
                got=f"no such file in {folder}",
                next_step="Give the folder that `python -m distill tokenizer` or a model export wrote.",
            )
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exception on a malformed file
            reason = str(error).strip().splitlines()
            raise UserError(
                wanted="a readable Hugging Face tokenizer",
                got=f"{folder}: {type(error).__name__}: {reason[0] if reason else ''}",
                next_step="Make the folder again: tokenizer.json or tokenizer_config.json is damaged.",
            ) from error
        if not isinstance(hf, PreTrainedTokenizerFast):
            raise UserError(
                wanted="a tokenizer with tokenizer.json",
                got=f"{type(hf).__name__} in {folder}",
                next_step="Convert it.",
            )
        return cls(folder, hf)

    def tokens(self) -> list[str]:
        """The token of every id, as the vocabulary spells it: what two tokenizers of one family share."""
        return [str(self._backend.id_to_token(index)) for index in range(self.size)]

    def save(self, folder: Path) -> None:
        """Copies the tokenizer's files, byte for byte, into `folder` (made if absent)."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)

    # --- plain text ---------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; control-token strings inside it are plain text."""
        return self._encode(text, control=False)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and, for each, the span [start, end) of characters of `text` that it comes from.

        Tokens that share one character (byte-level pieces of it) have that character's whole span.
        """
        return self._encode(text, control=False)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """`.ids` and `.offsets` of many texts, as `encode_with_offsets` gives them, in parallel."""
        self._backend.encode_special_tokens = True
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no valid UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    # --- chat ---------------------------------------------------------------------------------------------------------

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids of a whole conversation and its loss mask.

        The mask is 1 exactly on what the template puts between an opened assistant turn and its end token, and on that
        token. A token that begins before the content (a newline of the turn's header that merges with a newline at
        the start of the content) is 0: the prompt already holds a part of it.

        Args:
            messages: `{role, content}`, in the order of the conversation.
            tools: function descriptions for the template, or None.

        Raises:
            UserError: no chat template, or one that rejects or rewrites these messages.
        """
        conversation = Conversation(self._hf, messages, tools, self._control_pattern)
        text = conversation.text(conversation.messages)
        ids, offsets = self._encode_rendered(text, conversation.shield)
        mask = [0] * len(ids)
        place = 0
        for start, end in conversation.assistant_spans(text, turn_end=self._turn_end):
            if conversation.shield:  # the ids' offsets do not count it
                start, end = (edge - text.count(conversation.shield, 0, edge) for edge in (start, end))
            while place < len(ids) and offsets[place][0] < start:
                place += 1
            while place < len(ids) and offsets[place][0] < end:
                mask[place] = 1
                place += 1
        return ids, mask

    def render_prompt(self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None) -> list[int]:
        """Ids of a conversation with the assistant's turn opened: what a model is asked to continue."""
        conversation = Conversation(self._hf, messages, tools, self._control_pattern)
        return self._encode_rendered(conversation.text(conversation.messages, opened=True), conversation.shield)[0]

    # --- below the template -------------------------------------------------------------------------------------------

    def _encode(self, text: str, *, control: bool) -> tuple[list[int], list[tuple[int, int]]]:
        self._backend.encode_special_tokens = not control
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def _encode_rendered(self, text: str, shield: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of a rendered conversation; `shield` breaks up control strings and is no part of the text."""
        if not shield:
            return self._encode(text, control=True)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        begin = 0
        for piece in re.split(f"({self._control_pattern.pattern})", text):
            if piece in self._control_ids:
                ids.append(self._control_ids[piece])
                offsets.append((begin, begin + len(piece)))
            else:
                piece = piece.replace(shield, "")
                piece_ids, piece_offsets = self._encode(piece, control=False)
                ids += piece_ids
                offsets += [(begin + start, begin + end) for start, end in piece_offsets]
            begin += len(piece)
        return ids, offsets

    def _id_or_eos(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            found = self._hf.eos_token_id
        if not isinstance(found, int):
            raise UserError(
                wanted=f"{token} or an end-of-sequence token",
                got=f"neither in {self.folder}",
                next_step="Name eos_token in tokenizer_config.json.",
            )
        return found

    def _identity(self) -> str:
        # Only what decides about ids: libraries of other versions write the rest of the file differently.
        whole = json.loads(self._backend.to_str())
        parts = {name: whole[name] for name in ("normalizer", "pre_tokenizer", "decoder", "added_tokens")}
        parts |= {
            name: whole["model"].get(name) for name in ("type", "vocab", "merges", "byte_fallback", "ignore_merges")
        }
        parts |= {"chat_template": self._hf.chat_template, "ends": [self.document_end_id, self.turn_end_id]}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _any_of(strings: Sequence[str]) -> re.Pattern[str]:
    """A pattern that matches any of `strings` (of two characters or more); nothing where there are none."""
    choices = [re.escape(string) for string in strings if len(string) > 1]
    return re.compile("|".join(choices) if choices else r"(?!)")
