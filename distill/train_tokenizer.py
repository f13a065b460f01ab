"""The stage `train_tokenizer`: a byte-level BPE tokenizer for any Qwen2 runtime, learnt from text.

At run time it is exactly Qwen2's: NFC, its pre-tokenizer pattern, bytes, merges in order of rank, so that llama.cpp
gives the same ids (`tokenizer.ggml.pre = qwen2`). Only the training differs. Byte-level BPE on little Japanese merges
across characters, because kana share their first two bytes, and joins a name with its particle, because Qwen2's pattern
takes all letters of a sentence as one word. Therefore

1. the merges that build each frequent character from its bytes come first, and
2. all later merges join whole characters, learnt on text that is cut where the script changes: no token spans two of
   kanji, katakana, hiragana, digits, punctuation and line breaks, because no such merge exists.
"""

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from common.errors import UserError, not_found, require_at_least, require_between
from common.metrics import progress
from common.rows import MAX_BAD_SHARE, RowCounts, data_files, read_rows
from common.store import Workspace, say, stage
from common.tokenizer import Tokenizer as LoadedTokenizer

NUM_BYTES = 256
# The control tokens of ChatML, and its template: it adds no system prompt, writes functions and calls as Qwen2 does,
# which llama.cpp can parse, and uses only what both jinja2 and llama.cpp's own engine support.
DOCUMENT_END, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").removesuffix("\n")

# Qwen2's pre-tokenizer (transformers, models/qwen2/tokenization_qwen2.py, PRETOKENIZE_REGEX; Apache-2.0): a runtime
# that sees `pre = qwen2` splits by this very pattern.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Cuts Qwen2's words further, in training only. The prolonged sound mark belongs to the kana before it.
_PROLONGED = "\u30fc"
SCRIPT_PATTERN = (
    rf"\p{{Hiragana}}[\p{{Hiragana}}{_PROLONGED}]*|[\p{{Katakana}}{_PROLONGED}]+|\p{{Han}}+|[\r\n]+|[\p{{P}}\p{{S}}]+"
)
# Replaces a character that stays bytes; nothing merges across it.
_GAP = "\ufffd"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """The size of the tokenizer, and how much text it is learnt from."""

    vocabulary: int
    """Ids in total: 256 bytes, whole characters, merges and the special tokens."""
    special_tokens: tuple[str, ...] = (DOCUMENT_END, TURN_START, TURN_END)
    """Control tokens: the last ids, in this order. The three of ChatML must be among them."""
    min_frequency: int = 2
    """Smallest number of occurrences that makes a character or a pair a token."""
    character_share: float = 0.35
    """Largest share, 0 to 1, of the ids without bytes and special tokens that are spent on building characters.

    Of .15, .25, .35 and .5 this gave most characters a token on 11M characters of real Japanese at 8,000 ids."""
    max_characters: int = 200_000_000
    """Characters of text to read; the rest is ignored."""
    max_bad_share: float = MAX_BAD_SHARE
    """Bad rows allowed, as a share of all rows, 0 to 1."""

    def __post_init__(self) -> None:
        require_at_least(NUM_BYTES + len(self.special_tokens), vocabulary=self.vocabulary)
        require_at_least(1, min_frequency=self.min_frequency, max_characters=self.max_characters)
        require_between(0, 1, character_share=self.character_share)
        if not {DOCUMENT_END, TURN_START, TURN_END} <= set(self.special_tokens):
            wanted = f"{DOCUMENT_END}, {TURN_START} and {TURN_END} among the special tokens"
            raise not_found(wanted, ", ".join(self.special_tokens), next_step="add them: the chat template writes them")


@stage(version=1)
def train_tokenizer(config: TokenizerConfig, workspace: Workspace, *sources: Path) -> dict[str, Any]:
    """Train on files, or on `text.jsonl` of folders, and write a Hugging Face tokenizer folder.

    Deterministic. A text with too few repeated pairs gives fewer ids than wanted; the facts have their number.

    Raises:
        UserError: a file is missing or damaged, or there is no usable document.
    """
    files = [file for source in sources for file in data_files(source, "text")]
    counts = RowCounts()
    frequency: Counter[str] = Counter()
    for text in progress(_texts(files, config, counts), label="characters", unit="documents"):
        frequency.update(text)
    if not frequency:
        got, next_step = f"none in {', '.join(map(str, files))}", "give .jsonl files whose rows hold a `text`"
        raise UserError("empty", wanted="at least one document with text", got=got, next_step=next_step)
    known, merges = _merges(files, frequency, config)
    write_tokenizer(byte_level(merges, config.special_tokens), workspace.folder)
    loaded = LoadedTokenizer.load(workspace.folder)
    if loaded.size < config.vocabulary:
        few = f"no further pair occurs {config.min_frequency} times in this text"
        say(f"{loaded.size:,} ids of the wanted {config.vocabulary:,}: {few}")
    return {
        "vocabulary": loaded.size,
        "characters_built": sum(len(character.encode()) > 1 for character in known),
        "characters_read": frequency.total(),
        "documents": counts.rows - counts.num_bad,
        "bad_rows": counts.bad,
        "characters_per_token": round(_characters_per_token(loaded, files, config), 3),
        "tokenizer_sha256": loaded.sha256,
    }


def _texts(files: list[Path], config: TokenizerConfig, counts: RowCounts | None = None) -> Iterator[str]:
    """Normalised texts, up to `max_characters`."""
    left = config.max_characters
    for row in read_rows(files, fields={"text": str}, counts=counts, max_bad_share=config.max_bad_share):
        text = unicodedata.normalize("NFC", row["text"])[:left]
        yield text
        left -= len(text)
        if left <= 0:
            return


def _merges(
    files: list[Path], frequency: Counter[str], config: TokenizerConfig
) -> tuple[list[str], list[tuple[bytes, bytes]]]:
    """The characters that get their own token, and all merges in order of rank.

    A small text has too few repeated pairs; its characters then get the remaining ids.
    """
    total = config.vocabulary - NUM_BYTES - len(config.special_tokens)
    budget = int(total * config.character_share)
    while True:
        known, building = _characters(frequency, config, budget)
        joining = _character_bpe(files, config, known, total - len(building))
        unused = total - len(building) - len({left + right for left, right in joining})
        if unused == 0 or len(_characters(frequency, config, budget + unused)[1]) == len(building):
            return known, building + joining
        budget += unused


def _characters(
    frequency: Counter[str], config: TokenizerConfig, budget: int
) -> tuple[list[str], list[tuple[bytes, bytes]]]:
    """The characters that get their own token, most frequent first, and at most `budget` merges that build them.

    Merges start at the first byte, so that characters share the tokens of their first bytes (64 kana one such token).
    No merge can join bytes of two characters: the byte that it adds is always a continuation byte.
    """
    known: list[str] = []
    merges: dict[bytes, tuple[bytes, bytes]] = {}
    for character, count in sorted(frequency.items(), key=lambda item: (-item[1], item[0])):
        if character == _GAP:
            continue
        new = {made: merge for made, merge in building(character).items() if made not in merges}
        if new and (count < config.min_frequency or len(merges) + len(new) > budget):
            continue  # a later one can still fit, if the tokens of its first bytes exist
        merges |= new
        known.append(character)
    return known, list(merges.values())


def building(character: str) -> dict[bytes, tuple[bytes, bytes]]:
    """The merges that build a character from its first byte, by the bytes that each makes; none for ASCII."""
    encoded = character.encode()
    return {encoded[: end + 1]: (encoded[:end], encoded[end : end + 1]) for end in range(1, len(encoded))}


def _character_bpe(
    files: list[Path], config: TokenizerConfig, known: list[str], num_tokens: int
) -> list[tuple[bytes, bytes]]:
    """Up to `num_tokens` new tokens from pairs of characters, as merges of their UTF-8 bytes, in order of rank."""
    if num_tokens == 0:
        return []
    learner = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in (QWEN2_PATTERN, SCRIPT_PATTERN)]
    learner.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.Split(_GAP, behavior="removed")])
    trainer = trainers.BpeTrainer(
        vocab_size=len(known) + num_tokens,
        min_frequency=config.min_frequency,
        initial_alphabet=known,
        limit_alphabet=len(known),
        show_progress=False,
    )
    only_known = defaultdict(lambda: _GAP, {ord(character): character for character in known})
    texts = (text.translate(only_known) for text in _texts(files, config))
    learner.train_from_iterator(progress(texts, label="merges", unit="documents"), trainer)
    merges: list[list[str]] = json.loads(learner.to_str())["model"]["merges"]
    return [(left.encode(), right.encode()) for left, right in merges]


def byte_level(
    merges: Sequence[tuple[bytes, bytes]],
    special_tokens: Sequence[str],
    *,
    plain_tokens: Sequence[str] = (),
    byte_order: Sequence[int] = range(NUM_BYTES),
) -> Tokenizer:
    """Qwen2's tokenizer with these merges; ids: bytes, merged tokens in order of rank, special tokens, plain tokens.

    Merges are pairs of UTF-8 bytes in order of rank. Special tokens are never made from the characters of a text; plain
    ones can be. `byte_order` has the bytes in the order of their ids.
    """
    symbols = byte_symbols()
    spell = symbols.__getitem__
    spelt = [("".join(map(spell, left)), "".join(map(spell, right))) for left, right in merges]
    vocabulary = {symbols[byte]: index for index, byte in enumerate(byte_order)}
    for left, right in spelt:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=spelt))
    tokenizer.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    to_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, to_symbols])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain_tokens])
    return tokenizer


def byte_symbols() -> list[str]:
    """The printable character of each byte in byte-level BPE files (GPT-2's convention).

    Bytes that print in Latin-1 are written as themselves, the others as the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(NUM_BYTES)]


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face tokenizer folder: Qwen2's settings, ChatML, its turn end as the end-of-sequence token."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": TURN_END,
        "pad_token": DOCUMENT_END,
        "unk_token": None,
        "bos_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _characters_per_token(tokenizer: LoadedTokenizer, files: list[Path], config: TokenizerConfig) -> float:
    """Measured on the first million characters read."""
    characters = tokens = 0
    for text in _texts(files, config):
        characters += len(text)
        tokens += len(tokenizer.encode(text))
        if characters > 1_000_000:
            break
    return characters / tokens
