"""The tokenizer of a model folder in GGUF's terms: tokens, types, merges, pre-tokenizer name, special ids, template.

llama.cpp tokenises by itself, with a pre-tokenizer that it knows by name. The name follows from the pre-tokenizer that
`tokenizer.json` describes, never from the model's name: an unknown one is an error, since the wrong name gives a model
that loads and writes nonsense.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from common.errors import UserError
from common.tokenizer import Tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+" + _TAIL
# From the pre-tokenizer as `_split_of` writes it, and whether whole words that are tokens skip the merges
# (`ignore_merges`), to llama.cpp's name (src/llama-vocab.cpp). Regular expressions as in the tokenizer.json of Qwen2.5,
# Qwen3.5 and Llama 3.
_KNOWN = {
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+" + _TAIL, False): "qwen2",
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+" + _TAIL, False): "qwen35",
    (_LLAMA3, False): "smaug-bpe",
    (_LLAMA3, True): "llama-bpe",
    ("ByteLevel", False): "gpt-2",
    ("Digits ByteLevel", False): "smollm",
}

ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
"""Tokens at which llama.cpp stops by their names alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """What `tokenizer.ggml.*` holds. `tokens` and `types` have one entry a row of the embedding."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos_id: int | None
    eos_id: int
    turn_end_id: int
    more_stops: tuple[int, ...]
    """Further tokens that end an answer, and that llama.cpp does not know by their names."""
    padding_id: int | None
    add_bos: bool
    chat_templates: dict[str, str]
    size: int


def read_vocabulary(folder: Path, *, rows: int) -> Vocabulary:
    """Reads the tokenizer of a model folder: `tokenizer.json` and, where it is there, `tokenizer_config.json`.

    Of the `rows` of the model's embedding, those beyond the tokenizer become unused `[PADi]` tokens.

    Raises:
        UserError: no byte-level BPE tokenizer, a pre-tokenizer that llama.cpp does not know, more ids than rows.
    """
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file() and (folder / "tokenizer.model").is_file():
        raise _not_byte_level(folder, "a SentencePiece tokenizer.model")
    tokenizer = Tokenizer.load(folder)
    described = tokenizer.described()
    model = described["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise _not_byte_level(folder, f"{model.get('type')} with byte_fallback {bool(model.get('byte_fallback'))}")
    tokens, types = _tokens(described, rows=rows, folder=folder)
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    bos_id, eos_id, turn_end_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.turn_end_id
    eos_id = turn_end_id if eos_id is None else eos_id
    more = (stop for stop in tokenizer.stop_ids if stop not in (eos_id, turn_end_id) and tokens[stop] not in ENDS)
    return Vocabulary(
        pre=_pre_tokenizer_name(described, folder),
        tokens=tokens,
        types=types,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        bos_id=bos_id,
        eos_id=eos_id,
        turn_end_id=turn_end_id,
        more_stops=tuple(more),
        padding_id=tokenizer.padding_id,
        add_bos=bos_id is not None and _adds_bos(described, settings, bos=tokens[bos_id]),
        chat_templates=tokenizer.chat_templates,
        size=tokenizer.size,
    )


def _not_byte_level(folder: Path, got: str) -> UserError:
    wanted = "a byte-level BPE tokenizer.json, as Qwen2, Qwen3 and Llama 3 have"
    next_step = "export another model: SentencePiece tokenizers (Llama 2, Mistral) are not supported"
    return UserError("unsupported", wanted=wanted, got=f"{got} in {folder}", next_step=next_step)


def _tokens(described: dict[str, Any], *, rows: int, folder: Path) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    entries = [(index, token, TokenType.NORMAL) for token, index in described["model"]["vocab"].items()]
    for added in described.get("added_tokens", []):
        # llama.cpp itself makes control tokens of all that look like this, and matches other added tokens in any text.
        is_control = added["special"] or (added["content"].startswith("<|") and added["content"].endswith("|>"))
        entries.append((added["id"], added["content"], TokenType.CONTROL if is_control else TokenType.USER_DEFINED))
    highest = max(index for index, _, _ in entries)
    if highest >= rows:
        wanted, got = f"an embedding row for each of the tokenizer's ids, 0 to {highest}", f"{rows} rows in {folder}"
        raise UserError("mismatch", wanted=wanted, got=got, next_step="use the tokenizer of the model's training")
    for index, token, kind in entries:
        tokens[index], types[index] = token, int(kind)
    if len(set(tokens)) != rows or "" in tokens:
        doubled = next(token for token in tokens if not token or tokens.count(token) > 1)
        wanted, got = "different tokens, none empty", f"{doubled!r} twice or empty in {folder}/tokenizer.json"
        next_step = "correct the tokenizer; llama.cpp refuses such a vocabulary"
        raise UserError("wrong-format", wanted=wanted, got=got, next_step=next_step)
    return tokens, types


def _pre_tokenizer_name(described: dict[str, Any], folder: Path) -> str:
    split, ignore_merges = _split_of(described.get("pre_tokenizer")), bool(described["model"].get("ignore_merges"))
    if name := _KNOWN.get((split, ignore_merges)):
        return name
    wanted = f"a pre-tokenizer that llama.cpp and this exporter know ({', '.join(sorted(_KNOWN.values()))})"
    got = f"{split} with ignore_merges {ignore_merges} in {folder}/tokenizer.json"
    next_step = "use a tokenizer with Qwen2's or Llama 3's pre-tokenizer"
    raise UserError("unsupported", wanted=wanted, got=got, next_step=next_step)


def _split_of(pre_tokenizer: dict[str, Any] | None) -> str:
    """The steps of a pre-tokenizer in words, without a ByteLevel that splits nothing by itself."""
    outer = pre_tokenizer or {}
    steps: list[dict[str, Any]] = outer.get("pretokenizers") or ([outer] if outer else [])
    words: list[str] = []
    for step in steps:
        if step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            words.append(str(step["pattern"].get("Regex", step["pattern"])))
        elif step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            words += ["ByteLevel"] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step.get("individual_digits"):
            words.append("Digits")
        else:
            words.append(json.dumps(step, ensure_ascii=False))
    return " ".join(words) or "none"


def _adds_bos(described: dict[str, Any], settings: dict[str, Any], *, bos: str) -> bool:
    """Whether plain text gets the bos token: by the post-processor, which tokenizer_config.json overrides."""
    processor = described.get("post_processor") or {}
    templates = [step.get("single", []) for step in (processor, *processor.get("processors", []))]
    by_file = any(piece.get("SpecialToken", {}).get("id") == bos for single in templates for piece in single[:1])
    return bool(settings.get("add_bos_token", by_file))
