"""The tokenizer made by rule: its numbers are Qwen2.5's, its merges valid, and llama.cpp gives the same ids."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from errors_tiny import refuses
from export_tiny import workspace
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from common.model_shape import ModelShape
from common.tokenizer import Tokenizer
from distill.train_tokenizer import CHAT_TEMPLATE
from export.gguf import PROBE
from export.gguf_file import write_f16
from export.model_folder import Checkpoint
from export.vocabulary import read_vocabulary
from recipes.plan.gguf_bytes import QWEN_VOCABULARY_BYTES, computed_tensor_bytes
from recipes.stages.synthetic_tokenizer import NUM_MERGES, SyntheticTokenizerConfig, synthetic_tokenizer

ROWS = 151_936
JAPANESE = "吾輩は猫である。名前はまだ無い。東京、ラーメンを３杯食べました！「昨日ノ本」ヴー々〆 \n１2aThe "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole tokenizer beside a model of one tiny layer, so that it is a folder that can be exported."""
    made = tmp_path_factory.mktemp("stand-in") / "tokenizer"
    facts = synthetic_tokenizer(SyntheticTokenizerConfig(), workspace(made))
    assert (facts["vocabulary"], facts["merges"]) == (151_665, NUM_MERGES)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = Qwen2Config(vocab_size=ROWS, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    model: Any = Qwen2ForCausalLM(config)
    model.to(torch.float16).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def gguf_file(folder: Path) -> Path:
    path = folder / "tiny.gguf"
    write_f16(Checkpoint(folder), read_vocabulary(folder, rows=ROWS), path, name="tiny")
    return path


@pytest.fixture(scope="module")
def llama_ids(gguf_file: Path) -> Callable[[str], list[int]]:
    """What llama.cpp makes of a text with the vocabulary of the file."""
    import llama_cpp

    model: Any = llama_cpp.Llama(str(gguf_file), vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=False)


def test_every_merge_joins_what_is_there_and_makes_a_new_token(content: dict[str, Any]) -> None:
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    assert len(merges) == NUM_MERGES
    made = {token for token, index in vocabulary.items() if index < 256}
    for left, right in merges:
        assert left in made and right in made and left + right not in made
        assert vocabulary[left + right] == len(made)
        made.add(left + right)


def test_bytes_added_tokens_and_settings_are_qwens(folder: Path, content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    # GPT-2's order: bytes by the character that stands for them.
    assert [token for token, index in vocabulary.items() if index < 256] == sorted(pre_tokenizers.ByteLevel.alphabet())
    hf: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert isinstance(hf, Qwen2Tokenizer)
    assert (hf.eos_token, hf.pad_token, hf.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert hf.chat_template == CHAT_TEMPLATE
    own = Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer  # pyright: ignore[reportArgumentType]
    described = json.loads(own.to_str())
    assert content["normalizer"] == described["normalizer"]
    assert content["pre_tokenizer"]["pretokenizers"][0] == described["pre_tokenizer"]["pretokenizers"][0]


@pytest.mark.shared_data
def test_ids_of_bytes_and_added_tokens_are_those_of_the_real_one(content: dict[str, Any], shared_data: Path) -> None:
    real = json.loads((shared_data / "qwen2.5_tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    kept = ("id", "content", "special")
    assert [[token[key] for key in kept] for token in content["added_tokens"]] == [
        [token[key] for key in kept] for token in real["added_tokens"]
    ]
    for token in pre_tokenizers.ByteLevel.alphabet():
        assert content["model"]["vocab"][token] == real["model"]["vocab"][token]
    assert len(content["model"]["merges"]) == len(real["model"]["merges"])
    assert content["pre_tokenizer"] == real["pre_tokenizer"]


def test_the_gguf_takes_it_for_qwen2_and_its_vocabulary_is_about_as_large(folder: Path, gguf_file: Path) -> None:
    assert read_vocabulary(folder, rows=ROWS).pre == "qwen2"
    geometry = ModelShape.of(json.loads((folder / "config.json").read_text()))
    metadata = gguf_file.stat().st_size - computed_tensor_bytes(geometry, "F16")
    assert abs(metadata / QWEN_VOCABULARY_BYTES - 1) < 0.03


def test_llama_cpp_gives_the_same_ids_on_the_probe(tokenizer: Tokenizer, llama_ids: Callable[[str], list[int]]) -> None:
    assert llama_ids(PROBE) == tokenizer.encode(PROBE)
    assert tokenizer.decode(tokenizer.encode(PROBE)) == PROBE


@settings(max_examples=200)
@given(text=st.text(st.sampled_from(JAPANESE), max_size=80) | st.text(st.characters(exclude_categories=("Cs", "Cn"))))
def test_llama_cpp_gives_the_same_ids(tokenizer: Tokenizer, llama_ids: Callable[[str], list[int]], text: str) -> None:
    normal = tokenizer.decode(tokenizer.encode(text))  # NFC, which llama.cpp leaves to its caller
    assert llama_ids(normal) == tokenizer.encode(text)


@pytest.mark.shared_data
def test_real_japanese_becomes_about_as_many_tokens_as_with_the_real_one(
    tokenizer: Tokenizer, llama_ids: Callable[[str], list[int]], shared_data: Path
) -> None:
    with gzip.open(shared_data / "text_ja/aozora_pd1945.jsonl.gz", "rt", encoding="utf-8") as lines:
        text = "".join(json.loads(line)["text"] for _, line in zip(range(20), lines, strict=False))[:50_000]
    ids = tokenizer.encode(text)
    assert llama_ids(text) == ids
    real = Tokenizer.load(shared_data / "qwen2.5_tokenizer").encode(text)
    assert 0.8 < len(ids) / len(real) < 1.2
    assert len(ids) < 0.8 * len(text) < 0.3 * len(text.encode())


def test_a_conversation_has_no_system_prompt_of_its_own(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.render([{"role": "user", "content": "春。"}, {"role": "assistant", "content": "夏。"}])
    text = tokenizer.decode(ids, skip_special=False)
    assert text == "<|im_start|>user\n春。<|im_end|>\n<|im_start|>assistant\n夏。<|im_end|>\n"
    assert tokenizer.decode([index for index, counts in zip(ids, mask, strict=True) if counts]) == "夏。"


def test_fewer_merges_are_the_first_ones_each_time_the_same(tmp_path: Path, content: dict[str, Any]) -> None:
    config = SyntheticTokenizerConfig(merges=300)
    for name in ("one", "two"):
        facts = synthetic_tokenizer(config, workspace(tmp_path / name))
        assert facts["vocabulary"] == config.vocabulary == 578
    texts = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two")]
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["model"]["merges"] == content["model"]["merges"][:300]
    with refuses("out-of-range", wanted=f"{NUM_MERGES}", got=f"{NUM_MERGES + 1}"):
        SyntheticTokenizerConfig(merges=NUM_MERGES + 1)
