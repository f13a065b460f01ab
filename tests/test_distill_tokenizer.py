"""The trained tokenizer against transformers' Qwen2 pre-tokenizer, a naive BPE and the rules of its training."""

import itertools
import json
import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from hypothesis import example, given
from hypothesis import strategies as st
from text_tiny import TEXTS, VOCABULARY, tiny_tokenizer, workspace, write_rows
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, Qwen2Tokenizer

from common.errors import Code
from common.tokenizer import Tokenizer
from distill.train_tokenizer import TokenizerConfig, train_tokenizer

# Text that Qwen2's pattern cuts in every way it can, and the scripts of the training text.
AWKWARD = "Don't  I'LL\t\n\n 東京は、ラーメン「らーめん」1,200円。\r\n x² ½  \u3000か\u3099é 👍🏽 𠮷野家 "
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",))) | st.text(
    st.sampled_from("春夏秋冬川町のはをラーメン。、「」\n '12aStT\u3000"), max_size=60
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def qwen2_splits() -> Any:
    """Transformers' own pre-tokenizer of the Qwen2 class, vocabulary aside."""
    return Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer.pre_tokenizer  # pyright: ignore[reportArgumentType]


def symbol_of_byte(splits: Any) -> dict[int, str]:
    """How the pre-tokenizer spells each byte, read off it: no table of ours."""
    codes = [*range(0x800), 0x800, *range(0x1000, 0xE000, 0x1000), 0xE000, 0xF000, *range(0x10000, 0x110000, 0x10000)]
    text = "".join(map(chr, codes))
    table: dict[int, str] = {}
    for character in text:
        spelt = "".join(piece for piece, _ in splits.pre_tokenize_str(character))
        assert len(spelt) == len(character.encode())
        table |= dict(zip(character.encode(), spelt, strict=True))
    return table


def test_loads_as_qwen2_with_chatml_tokens(folder: Path, tokenizer: Tokenizer) -> None:
    hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    assert isinstance(hf, Qwen2Tokenizer) and len(hf) == VOCABULARY == tokenizer.size
    assert (hf.eos_token, hf.pad_token, hf.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert hf.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [477, 478, 479]


def test_every_byte_has_the_symbol_that_the_pretokenizer_writes(content: dict[str, Any], qwen2_splits: Any) -> None:
    vocabulary = content["model"]["vocab"]
    table = symbol_of_byte(qwen2_splits)
    assert len(table) == 256 - 13  # bytes that no UTF-8 text holds: C0, C1, F5 to FF
    assert all(vocabulary[symbol] == byte for byte, symbol in table.items())
    assert len({symbol for symbol in vocabulary if len(symbol) == 1}) == 256


@given(text=ANY_TEXT)
@example(text=AWKWARD)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@given(text=ANY_TEXT)
@example(text=AWKWARD)
@example(text="".join(TEXTS))
def test_encode_is_a_naive_bpe_over_qwen2s_splits(
    tokenizer: Tokenizer, content: dict[str, Any], qwen2_splits: Any, text: str
) -> None:
    ranks = {tuple(pair): rank for rank, pair in enumerate(content["model"]["merges"])}
    ids: list[int] = []
    for piece, _ in qwen2_splits.pre_tokenize_str(unicodedata.normalize("NFC", text)):
        symbols = list(piece)
        while True:
            pairs = [(ranks[pair], place) for place, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
            if not pairs:
                break
            _, place = min(pairs)
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        ids += [content["model"]["vocab"][symbol] for symbol in symbols]
    assert tokenizer.encode(text) == ids


@given(text=ANY_TEXT)
@example(text=AWKWARD)
def test_the_file_alone_says_all(folder: Path, tokenizer: Tokenizer, text: str) -> None:
    """The Qwen2 class brings a normaliser and a pre-tokenizer of its own: the file must hold the same ones."""
    assert raw_tokenizer(folder).encode(text).ids == tokenizer.encode(text)


@lru_cache
def raw_tokenizer(folder: Path) -> Backend:
    raw = Backend.from_file(str(folder / "tokenizer.json"))
    raw.encode_special_tokens = True
    return raw


def test_characters_are_built_before_any_two_are_joined(content: dict[str, Any]) -> None:
    of_symbol = {symbol: token for symbol, token in content["model"]["vocab"].items() if token < 256}
    joins: list[bool] = []
    for left, right in content["model"]["merges"]:
        merged = bytes(of_symbol[symbol] for symbol in left + right)
        # Bytes that begin a character: all but those of the form 10xxxxxx.
        joins.append(sum(byte & 0xC0 != 0x80 for byte in merged) > 1)
    assert joins == sorted(joins) and len(set(joins)) == 2


def script(character: str) -> str:
    name = unicodedata.name(character, "")
    for kind in ("HIRAGANA", "KATAKANA", "CJK UNIFIED", "LATIN", "DIGIT"):
        if kind in name and "PROLONGED" not in name:
            return kind
    if character in "\r\n":
        return "BREAK"
    return {"P": "PUNCTUATION", "S": "PUNCTUATION", "Z": "SPACE"}.get(unicodedata.category(character)[0], "ANY")


def test_no_token_spans_two_scripts_or_a_part_of_a_character(tokenizer: Tokenizer, content: dict[str, Any]) -> None:
    pieces = [tokenizer.decode([token]) for token in range(256, tokenizer.size - 3)]
    whole = [piece for piece in pieces if "\ufffd" not in piece]
    longer = [piece for piece in whole if len(piece) > 1]
    assert {"ラーメン", "ます", "です", "。「"} & set(longer) >= {"です"}
    for piece in longer:
        scripts = {script(character) for character in piece} - {"ANY"}
        # Qwen2's words begin with their space.
        assert scripts - {"SPACE"} <= {next(iter(scripts - {"SPACE"}), "")} and "DIGIT" not in scripts, piece
    # What is no text by itself is the beginning of a character that has a token of its own.
    beginnings = {piece.encode()[:end] for piece in whole if len(piece) == 1 for end in (1, 2, 3)}
    of_symbol = {symbol: token for symbol, token in content["model"]["vocab"].items() if token < 256}
    spelt = {token: symbols for symbols, token in content["model"]["vocab"].items()}
    parts = [bytes(of_symbol[symbol] for symbol in spelt[token]) for token in range(256, tokenizer.size - 3)]
    assert all(part in beginnings for part, piece in zip(parts, pieces, strict=True) if "\ufffd" in piece)


def test_frequent_characters_are_one_token(tokenizer: Tokenizer) -> None:
    assert all(len(tokenizer.encode(character)) == 1 for character in "春秋川町のはをす。、")
    # Names stay apart from particles, digits from one another, answers from the line break behind them.
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("川は42です。\nラーメンを")]
    assert pieces[:4] == ["川", "は", "4", "2"] and pieces[pieces.index("。") + 1] == "\n"
    assert not any(re.search(r"[ァ-ヶ].*を", piece) for piece in pieces)


def test_same_text_same_files(tmp_path: Path, folder: Path) -> None:
    again = tiny_tokenizer(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_fewer_ids_where_the_text_holds_no_more_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_rows(tmp_path / "text.jsonl", [{"text": "春春夏夏"}] * 3)
    facts = train_tokenizer(TokenizerConfig(vocabulary=5000), workspace(tmp_path / "out"), tmp_path)
    # Three bytes a character, of which the first two differ here: two merges each; then the pairs and all four.
    assert facts["vocabulary"] == 256 + 3 + 4 + 3
    printed = capsys.readouterr().out
    assert all(number in printed for number in ("266 ids", "5,000", "2 times"))
    assert (facts["documents"], facts["characters_read"], facts["characters_built"]) == (3, 12, 2)
    assert text.is_file()


def test_smallest_vocabulary_and_characters_that_do_not_fit(tmp_path: Path) -> None:
    write_rows(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS])
    for vocabulary in (259, 263, 300):
        facts = train_tokenizer(TokenizerConfig(vocabulary=vocabulary), workspace(tmp_path / str(vocabulary)), tmp_path)
        assert facts["vocabulary"] == vocabulary
        loaded = Tokenizer.load(tmp_path / str(vocabulary))
        assert loaded.decode(loaded.encode(AWKWARD)) == unicodedata.normalize("NFC", AWKWARD)


def test_max_characters_bounds_what_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "text.jsonl", [{"text": "春春春春"}, {"text": "秋秋夏夏"}, {"text": "冬冬冬冬"}])
    facts = train_tokenizer(TokenizerConfig(vocabulary=300, max_characters=6), workspace(tmp_path / "out"), tmp_path)
    assert facts["characters_read"] == 6
    lengths = [len(Tokenizer.load(tmp_path / "out").encode(character)) for character in "春秋夏冬"]
    assert lengths[:2] == [1, 1] and min(lengths[2:]) > 1


def test_line_breaks_stay_apart_from_the_space_before_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "text.jsonl", [{"text": "春。\u3000\n\n夏 \n"}] * 5)
    train_tokenizer(TokenizerConfig(vocabulary=300), workspace(tmp_path / "out"), tmp_path)
    loaded = Tokenizer.load(tmp_path / "out")
    pieces = [loaded.decode([token]) for token in loaded.encode("春。\u3000\n\n夏 \n")]
    assert pieces == ["春", "。", "\u3000", "\n\n", "夏", " ", "\n"]


@pytest.mark.parametrize(
    ("settings", "code", "wanted"),
    [
        ({"vocabulary": 258}, "out-of-range", "vocabulary of at least 259"),
        ({"vocabulary": 300, "special_tokens": ("<|endoftext|>",)}, "not-found", "<|im_end|>"),
        ({"vocabulary": 300, "character_share": 1.5}, "out-of-range", "character_share from 0 to 1"),
        ({"vocabulary": 300, "min_frequency": 0}, "out-of-range", "min_frequency"),
        ({"vocabulary": 300, "max_characters": 0}, "out-of-range", "max_characters"),
    ],
)
def test_contradicting_configs(settings: dict[str, Any], code: Code, wanted: str) -> None:
    with refuses(code, wanted=wanted):
        TokenizerConfig(**settings)


def test_no_usable_document(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("")
    with refuses("empty", got="text.jsonl"):
        train_tokenizer(TokenizerConfig(vocabulary=300), workspace(tmp_path / "out"), tmp_path)


# --- the chat template ------------------------------------------------------------------------------------------------


def test_template_is_plain_chatml(folder: Path) -> None:
    hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    messages = [{"role": "user", "content": "春"}, {"role": "assistant", "content": "夏"}]
    plain = "<|im_start|>user\n春<|im_end|>\n<|im_start|>assistant\n夏<|im_end|>\n"
    assert hf.apply_chat_template(messages, tokenize=False) == plain
    with_system = [{"role": "system", "content": "山"}, *messages]
    assert hf.apply_chat_template(with_system, tokenize=False) == "<|im_start|>system\n山<|im_end|>\n" + plain
    opened = hf.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "<|im_start|>user\n春<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("system", [None, "山"])
def test_template_writes_tools_and_calls(folder: Path, system: str | None) -> None:
    hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tool = {"type": "function", "function": {"name": "f", "description": "天気", "parameters": {}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"町": "東"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "春"},
        {"role": "assistant", "tool_calls": [call, call]},
        {"role": "tool", "content": "晴れ"},
        {"role": "tool", "content": "雨"},
        {"role": "assistant", "content": "夏"},
    ]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    text = hf.apply_chat_template(messages, tools=[tool], tokenize=False)
    written = '\n<tool_call>\n{"name": "f", "arguments": {"町": "東"}}\n</tool_call>'
    assert text.startswith("<|im_start|>system\n" + ("山\n\n" if system else "") + "Functions")
    assert text.count("<|im_start|>system") == 1 and text.count("山") == (1 if system else 0)
    signature = text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(signature) == tool and "天気" in signature
    assert text.endswith(
        "<|im_start|>user\n春<|im_end|>\n<|im_start|>assistant" + written * 2 + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n晴れ\n</tool_response>\n<tool_response>\n雨\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n夏<|im_end|>\n"
    )
