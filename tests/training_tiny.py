"""Tiny tokenizer, corpus and models for the tests of the training loops; everything is made in place."""

import json
from pathlib import Path

from common.device import Machine
from common.packing import write_packed
from common.store import run_alone
from common.tokenizer import Tokenizer
from distill.initial import InitConfig, init, qwen2_config
from distill.train_tokenizer import TokenizerConfig, train_tokenizer

MACHINE = Machine(device="cpu", compute_dtype="float32", cpu="test", gpu=None, memory_bytes=0, os="test", threads=1)
NAMES = ("青森", "秋田", "山形", "福島", "仙台", "新潟", "富山", "金沢")
THINGS = ("林檎", "米", "桜桃", "桃", "牛肉", "酒", "水", "菓子")


def texts(count: int, start: int = 0) -> list[str]:
    """Short genuine sentences, no two equal."""
    return [
        f"{NAMES[i % 8]}の名物は{THINGS[(i + i // 8) % 8]}です。番号は{i}番です。" for i in range(start, start + count)
    ]


def tokenizer_folder(folder: Path, vocabulary: int = 400) -> Path:
    """A trained tokenizer."""
    source = folder / "tokenizer-source"
    source.mkdir(parents=True)
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts(200)]
    (source / "text.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run_alone(train_tokenizer, TokenizerConfig(vocabulary=vocabulary), folder / "tokenizer", source, report=_quiet)
    return folder / "tokenizer"


def corpus_folder(folder: Path, tokenizer: Path, *, sequence_tokens: int = 48) -> Path:
    """Packed splits as `distill.corpus` writes them."""
    loaded = Tokenizer.load(tokenizer)
    for split, start, count in (("train", 0, 60), ("validation", 60, 20), ("test", 80, 20)):
        documents = [
            ([*loaded.encode(text), loaded.document_end_id], [100] * (len(loaded.encode(text)) + 1))
            for text in texts(count, start)
        ]
        write_packed(folder / "packed" / split, documents, sequence_tokens=sequence_tokens, tokenizer=loaded)
    loaded.save(folder / "tokenizer")
    return folder


def model_folder(
    folder: Path, tokenizer: Path, *, hidden: int = 32, seed: int = 0, rows: int = 416, layers: int = 2
) -> Path:
    """An untrained Qwen2 with more logits than ids."""
    config = qwen2_config(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=rows,
        max_position_embeddings=128,
    )
    run_alone(init, InitConfig(config_json=config, seed=seed), folder, tokenizer, report=_quiet)
    return folder


def run_folders(folder: Path) -> dict[str, Path]:
    """What a distillation run takes, by name; the teacher is wider and has other padded rows."""
    tokenizer = tokenizer_folder(folder)
    return {
        "tokenizer": tokenizer,
        "corpus": corpus_folder(folder / "corpus", tokenizer),
        "student": model_folder(folder / "student", tokenizer),
        "teacher": model_folder(folder / "teacher", tokenizer, hidden=48, seed=1, rows=448),
    }


def _quiet(line: str) -> None:
    del line
