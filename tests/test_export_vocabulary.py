"""The tokenizer in GGUF's terms: which pre-tokenizers are known, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from export_tiny import LLAMA3_SPLIT, write_tokenizer
from tokenizers import Tokenizer

from export.vocabulary import Vocabulary, read_vocabulary

ROWS = 640


def edit(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    described = json.loads(path.read_text(encoding="utf-8"))
    change(described)
    path.write_text(json.dumps(described), encoding="utf-8")


def read(folder: Path) -> Vocabulary:
    return read_vocabulary(folder, rows=ROWS)


def test_tokens_and_merges_are_the_tokenizers(tmp_path: Path) -> None:
    size = write_tokenizer(tmp_path)
    vocabulary = read(tmp_path)
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert vocabulary.tokens[:size] == [raw.id_to_token(index) for index in range(size)]
    assert (vocabulary.size, len(vocabulary.tokens), len(vocabulary.types)) == (size, ROWS, ROWS)
    # Each merge makes a token out of two others, in the order in which BPE learnt them.
    made = [merge.replace(" ", "") for merge in vocabulary.merges]
    assert made == vocabulary.tokens[256 : 256 + len(made)]


@pytest.mark.parametrize("merges_as_text", [True, False])
def test_both_spellings_of_merges_are_read(merges_as_text: bool, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    before = read(tmp_path).merges

    def change(described: dict[str, Any]) -> None:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in described["model"]["merges"]]
        described["model"]["merges"] = [" ".join(pair) for pair in pairs] if merges_as_text else pairs

    edit(tmp_path, "tokenizer.json", change)
    assert read(tmp_path).merges == before


@pytest.mark.parametrize(
    ("split", "ignore_merges", "name"),
    [
        ("qwen2", False, "qwen2"),
        (LLAMA3_SPLIT, True, "llama-bpe"),
        (LLAMA3_SPLIT, False, "smaug-bpe"),
        ([{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}], False, "gpt-2"),
        (
            [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
            False,
            "smollm",
        ),
    ],
)
def test_pre_tokenizer_is_found_by_what_it_does(split: Any, ignore_merges: bool, name: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)

    def change(described: dict[str, Any]) -> None:
        described["model"]["ignore_merges"] = ignore_merges
        if isinstance(split, list):
            described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": split}
        elif split != "qwen2":
            described["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": split}

    edit(tmp_path, "tokenizer.json", change)
    assert read(tmp_path).pre == name


@pytest.mark.parametrize("change", ["other regex", "prefix space", "ignored merges", "none"])
def test_unknown_pre_tokenizer_is_refused(change: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)

    def spoil(described: dict[str, Any]) -> None:
        steps = described["pre_tokenizer"]["pretokenizers"]
        if change == "other regex":
            steps[0]["pattern"] = {"Regex": r"\p{L}+"}
        elif change == "prefix space":
            steps[1]["add_prefix_space"] = True
        elif change == "ignored merges":
            described["model"]["ignore_merges"] = True
        else:
            described["pre_tokenizer"] = None

    edit(tmp_path, "tokenizer.json", spoil)
    with refuses("unsupported", wanted="llama-bpe, qwen2"):
        read(tmp_path)


def test_template_comes_from_its_own_file_first(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    own = (tmp_path / "chat_template.jinja").read_text()
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages }}"}]
    edit(tmp_path, "tokenizer_config.json", lambda settings: settings.update(chat_template=named))
    assert read(tmp_path).chat_templates == {"default": own}
    (tmp_path / "chat_template.jinja").unlink()
    assert read(tmp_path).chat_templates == {"tool_use": "no", "default": "{{ messages }}"}
    edit(tmp_path, "tokenizer_config.json", lambda settings: settings.pop("chat_template"))
    assert read(tmp_path).chat_templates == {}


def test_beginning_token_follows_the_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "qwen")
    write_tokenizer(tmp_path / "llama", split=LLAMA3_SPLIT, bos=True)
    qwen, llama = read(tmp_path / "qwen"), read(tmp_path / "llama")
    assert (qwen.bos_id, qwen.add_bos) == (None, False)
    assert llama.bos_id is not None
    assert llama.tokens[llama.bos_id] == "<|begin_of_text|>"
    assert llama.add_bos
    edit(tmp_path / "llama", "tokenizer_config.json", lambda settings: settings.update(add_bos_token=False))
    assert not read(tmp_path / "llama").add_bos


def test_tokenizers_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with refuses("unsupported", got="tokenizer.model"):
        read(tmp_path)
    write_tokenizer(tmp_path)
    edit(tmp_path, "tokenizer.json", lambda described: described["model"].update(byte_fallback=True))
    with refuses("unsupported", got="byte_fallback True"):
        read(tmp_path)


def test_more_ids_than_rows_and_doubled_tokens_are_refused(tmp_path: Path) -> None:
    size = write_tokenizer(tmp_path)
    with refuses("mismatch", wanted=f"0 to {size - 1}", got=f"{size - 1} rows"):
        read_vocabulary(tmp_path, rows=size - 1)

    def add_padding_name(described: dict[str, Any]) -> None:
        added = dict(described["added_tokens"][-1], id=size, content=f"[PAD{size + 1}]")
        described["added_tokens"].append(added)

    edit(tmp_path, "tokenizer.json", add_padding_name)
    with refuses("wrong-format", got=f"PAD{size + 1}"):
        read(tmp_path)
