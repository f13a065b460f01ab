"""The stage `synthetic_tokenizer`: a tokenizer of exactly Qwen2.5's size, made by rule, where the real one is absent.

It has Qwen2.5's counts (256 bytes, 151,387 merges, 22 added tokens), its ids of bytes and added tokens, its normaliser
and its pre-tokenizer; only the merges differ. They build the characters of JIS X 0208 from their bytes, then join
characters: Latin letters to up to three with a space before, kana to pairs, common kanji with the kana after them.
Latin tokens are short in a GGUF and Japanese ones long, so the vocabulary takes about as many bytes as Qwen2.5's.
Memory, file sizes and speed are therefore those of the real tokenizer. No text is read.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from common.errors import require_between
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
    *(DOCUMENT_END, TURN_START, TURN_END),
    *(f"<|{what}_{end}|>" for what in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""Qwen2.5's control tokens, ids 151,643 to 151,656."""
PLAIN_TOKENS = (
    *("<tool_call>", "</tool_call>"),
    *(f"<|{what}|>" for what in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")),
)
"""Its added tokens that are ordinary text, ids 151,657 to 151,664."""

# JIS X 0208 has rows of 94 characters (in EUC-JP from byte 0xA1 on). Row 4 is hiragana, 5 katakana, 16 to 47 are the
# common kanji (level 1).
_ROW_LENGTH, _FIRST_BYTE = 94, 0xA0
_HIRAGANA, _KATAKANA, _COMMON_KANJI = range(4, 5), range(5, 6), range(16, 48)
_PROLONGED = "ー"
# The commonest kana after a kanji: particles, and the first kana of endings.
_AFTER_KANJI = "のにはをがとでたるいしもすてりうくかれっなさらきまけみえよせめわ"

Merge = tuple[bytes, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticTokenizerConfig:
    """The number of merges; tests use fewer."""

    merges: int = NUM_MERGES
    """The first N of the rule's merges; there are 278 more ids than merges."""

    def __post_init__(self) -> None:
        require_between(0, NUM_MERGES, merges=self.merges)

    @property
    def vocabulary(self) -> int:
        """Ids in total."""
        return NUM_BYTES + self.merges + len(SPECIAL_TOKENS) + len(PLAIN_TOKENS)


@stage(version=1)
def synthetic_tokenizer(config: SyntheticTokenizerConfig, workspace: Workspace) -> dict[str, Any]:
    """Write the Hugging Face tokenizer folder. Deterministic; takes a few seconds.

    Returns:
        `vocabulary` (ids in total), `merges`, `tokenizer_sha256`.
    """
    merges = list(islice(_all_merges(), config.merges))
    symbols = byte_symbols()
    byte_order = sorted(range(NUM_BYTES), key=symbols.__getitem__)  # Qwen2's, which is GPT-2's
    made = byte_level(merges, SPECIAL_TOKENS, plain_tokens=PLAIN_TOKENS, byte_order=byte_order)
    write_tokenizer(made, workspace.folder)
    loaded = Tokenizer.load(workspace.folder)
    assert loaded.size == config.vocabulary, "two merges give the same token"
    return {"vocabulary": loaded.size, "merges": len(merges), "tokenizer_sha256": loaded.sha256}


def _all_merges() -> Iterator[Merge]:
    """Merges in order of rank, each of bytes or earlier tokens into a new token; more than `NUM_MERGES`."""
    yield from _characters()
    yield from _whitespace()
    yield from _latin()
    for row in (_HIRAGANA, _KATAKANA):
        kana = _rows(row) + ([_PROLONGED] if row == _KATAKANA else [])
        yield from _pairs(product(kana, kana))
    # The outer loop is over kana, so that where the list is cut, every kanji still has the commonest of them.
    yield from _pairs((kanji, kana) for kana in _AFTER_KANJI for kanji in _rows(_COMMON_KANJI))


def _characters() -> Iterator[Merge]:
    """All characters of JIS X 0208, from their first byte on: 64 kana share the token of their first two bytes."""
    made: dict[bytes, Merge] = {}
    for character in _rows(range(1, _ROW_LENGTH + 1)):
        made |= building(character)  # a prefix that exists keeps its rank
    yield from made.values()


def _rows(rows: range) -> list[str]:
    """The characters of these rows in order, without those that NFC replaces: normalised text has none of them."""
    cells = product(rows, range(1, _ROW_LENGTH + 1))
    decoded = (bytes([_FIRST_BYTE + row, _FIRST_BYTE + cell]).decode("euc_jp", errors="ignore") for row, cell in cells)
    return [character for character in decoded if character and unicodedata.is_normalized("NFC", character)]


def _whitespace() -> Iterator[Merge]:
    """Runs of 2, 4, 8 and 16 spaces, tabs and line ends."""
    yield from _pairs((sign * length, sign * length) for sign in " \t\n" for length in (1, 2, 4, 8))


def _latin() -> Iterator[Merge]:
    """Two and three letters, the first of either case, and one to three with a space before, three in lower case."""
    small, first = list(ascii_lowercase), [*ascii_lowercase, *ascii_uppercase]
    two = ["".join(piece) for piece in product(first, small)]
    yield from _pairs(product(first, small))
    yield from _pairs(product(two, small))
    three = ("".join(piece) for piece in product(small, small, small))
    yield from _pairs((" ", piece) for piece in (*first, *two, *three))


def _pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[Merge]:
    for left, right in pairs:
        yield left.encode(), right.encode()
