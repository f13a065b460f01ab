"""The stage `synthetic_tokenizer`: a tokenizer of exactly Qwen2.5's size, made by rule, where the real one is absent.

Same numbers (256 bytes, 151,387 merges, 22 added tokens), same ids of bytes and added tokens, same normaliser and
pre-tokenizer; only the merges are others. They build the characters of JIS X 0208 from their bytes and then join
characters: Latin letters to up to three with a space before, kana to pairs, common kanji with the kana after them.
Latin ones are short in a GGUF and Japanese ones long, so that together they take about the room of Qwen2.5's. What
memory, files and speed depend on is therefore as with the real one; a model of it has nothing in common with Qwen's.
It reads no text.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from common.errors import UserError
from common.store import Workspace, stage
from common.tokenizer import Tokenizer
from distill.train_tokenizer import (
    DOCUMENT_END,
    NUM_BYTES,
    TURN_END,
    TURN_START,
    building,
    byte_level,
    byte_symbols,
    write_tokenizer,
)

NUM_MERGES = 151_387
"""Qwen2.5's."""
SPECIAL_TOKENS = (
    DOCUMENT_END,
    TURN_START,
    TURN_END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5's control tokens, ids 151,643 to 151,656."""
PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Its added tokens that a text may spell, ids 151,657 to 151,664."""

# JIS X 0208's rows, 94 characters each (EUC-JP has them from byte 0xA1 on); row 4 is hiragana, 5 katakana, 16 to 47
# are the kanji of level 1, the common ones.
_ROW_LENGTH, _FIRST_BYTE = 94, 0xA0
_HIRAGANA, _KATAKANA, _COMMON_KANJI = range(4, 5), range(5, 6), range(16, 48)
_PROLONGED = "ー"
# What follows a kanji most: particles, and the first kana of endings.
_AFTER_KANJI = "のにはをがとでたるいしもすてりうくかれっなさらきまけみえよせめわ"

Merge = tuple[bytes, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticTokenizerConfig:
    """How many of the merges; all of them unless a test wants fewer."""

    merges: int = NUM_MERGES
    """The first so many of the rule's merges; ids in total are 278 more."""

    def __post_init__(self) -> None:
        if not 0 <= self.merges <= NUM_MERGES:
            raise UserError(
                wanted=f"0 to {NUM_MERGES} merges", got=str(self.merges), next_step="Correct the tokenizer's config."
            )

    @property
    def vocabulary(self) -> int:
        """Ids in total."""
        return NUM_BYTES + self.merges + len(SPECIAL_TOKENS) + len(PLAIN_TOKENS)


@stage(version=1)
def synthetic_tokenizer(config: SyntheticTokenizerConfig, workspace: Workspace) -> dict[str, Any]:
    """Writes the Hugging Face tokenizer folder. Deterministic, in a few seconds.

    Returns:
        `vocabulary` (ids in total), `merges`, `tokenizer_sha256`.
    """
    merges = list(islice(stand_in_merges(), config.merges))
    symbols = byte_symbols()
    byte_order = sorted(range(NUM_BYTES), key=symbols.__getitem__)  # Qwen2's, which is GPT-2's
    made = byte_level(merges, SPECIAL_TOKENS, plain_tokens=PLAIN_TOKENS, byte_order=byte_order)
    write_tokenizer(made, workspace.folder)
    loaded = Tokenizer.load(workspace.folder)
    assert loaded.size == config.vocabulary, "a merge makes what another one makes"
    return {"vocabulary": loaded.size, "merges": len(merges), "tokenizer_sha256": loaded.sha256}


def stand_in_merges() -> Iterator[Merge]:
    """The rule's merges in order of rank, each a token of its own, its parts bytes or made before.

    More of them than a tokenizer takes: the last rule is cut short.
    """
    yield from _characters()
    yield from _whitespace()
    yield from _latin()
    for row in (_HIRAGANA, _KATAKANA):
        kana = _rows(row) + ([_PROLONGED] if row == _KATAKANA else [])
        yield from _pairs(product(kana, kana))
    # Outer loop over the kana: cut short, every kanji still has the commonest of them.
    yield from _pairs((kanji, kana) for kana in _AFTER_KANJI for kanji in _rows(_COMMON_KANJI))


def _characters() -> Iterator[Merge]:
    """All characters of JIS X 0208, from their first byte on: 64 kana share what their first two bytes make."""
    made: dict[bytes, Merge] = {}
    for character in _rows(range(1, _ROW_LENGTH + 1)):
        made |= building(character)  # a beginning that is there keeps its place
    yield from made.values()


def _rows(rows: range) -> list[str]:
    """The characters of these rows in the standard's order, without those that NFC rewrites and no text thus has."""
    cells = product(rows, range(1, _ROW_LENGTH + 1))
    decoded = (bytes([_FIRST_BYTE + row, _FIRST_BYTE + cell]).decode("euc_jp", errors="ignore") for row, cell in cells)
    return [character for character in decoded if character and unicodedata.is_normalized("NFC", character)]


def _whitespace() -> Iterator[Merge]:
    """Runs of 2, 4, 8 and 16 spaces, tabs and line ends."""
    for sign in (" ", "\t", "\n"):
        for length in (1, 2, 4, 8):
            yield (sign * length).encode(), (sign * length).encode()


def _latin() -> Iterator[Merge]:
    """Two and three letters, the first small or capital, and one to three with a space before, in three only small."""
    small, first = list(ascii_lowercase), [*ascii_lowercase, *ascii_uppercase]
    two = ["".join(piece) for piece in product(first, small)]
    yield from _pairs(product(first, small))
    yield from _pairs(product(two, small))
    three = ("".join(piece) for piece in product(small, small, small))
    yield from _pairs((" ", piece) for piece in (*first, *two, *three))


def _pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[Merge]:
    for left, right in pairs:
        yield left.encode(), right.encode()
