"""A SOURCES folder with everything that the TinySwallow recipe takes from the hub, in its published shapes, but small.

Names of files, columns, encryption, shards and vocabulary sizes are as published; models, texts and answers are
synthetic.
"""

import csv
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import torch
from lmsys_tiny import ANSWERS, INSTRUCTIONS, ORIGINAL, SET, answer_row, encrypted, turn
from pyarrow.parquet import write_table
from text_tiny import workspace, write_rows

from common.checkpoint import new_model
from common.tokenizer import Tokenizer
from recipes.stages.synthetic_tokenizer import SyntheticTokenizerConfig, synthetic_tokenizer

TEACHER, STUDENT = "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"
WEB, WIKIPEDIA = "HuggingFaceFW/fineweb-2", "wikimedia/wikipedia"
MAGPIE, GEMMA = "tokyotech-llm/swallow-magpie-ultra-v0.1", "tokyotech-llm/swallow-gemma-magpie-v0.1"
TEACHER_ROWS, STUDENT_ROWS = 152_064, 151_936
_KANJI = (
    "春夏秋冬山川海空花鳥風月町村駅橋店米茶酒紙布石木金銀東西南北父母兄弟友人馬牛魚犬猫雨雪雲星朝昼夜光音色心手足目耳口"
)
_SENTENCES = (
    "{a}の近くには古い{b}があり、{c}を訪れる人が多い。",
    "{a}は{b}と{c}から作られ、昔から大切にされてきました。",
    "毎年{a}の季節になると、{b}では{c}の祭りが開かれる。",
    "{a}について調べた人は、{b}よりも{c}のほうが役に立つと考えた。",
    "その{a}を見た{b}の先生は、{c}の話をゆっくりと始めました。",
    "{a}から{b}までは歩いて十分ほどで、途中に{c}が見えます。",
    "むかし{a}に住んでいた人々は、{b}を使って{c}を運んだという。",
    "{a}の味は{b}に似ているが、{c}を加えるとずっとおいしくなる。",
    "研究によると、{a}が増えると{b}が減り、{c}にも影響が出る。",
    "もし{a}が壊れたら、{b}の店で{c}を買って直してください。",
)


def publish(root: Path, *, documents: int = 160, conversations: int = 60) -> Path:
    """Writes all of it."""
    tokenizer = root / "tokenizer"
    synthetic_tokenizer(SyntheticTokenizerConfig(), workspace(tokenizer))
    _models(root, Tokenizer.load(tokenizer))
    _text(root, documents)
    _conversations(root, conversations)
    write_benchmarks(root / "benchmarks")
    return root


def _models(root: Path, tokenizer: Tokenizer) -> None:
    shared = {"model_type": "qwen2", "num_hidden_layers": 2, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6}
    shared |= {"rope_theta": 1e6, "num_attention_heads": 4, "num_key_value_heads": 2}
    teacher = shared | {"hidden_size": 128, "intermediate_size": 256, "vocab_size": TEACHER_ROWS}
    student = shared | {"hidden_size": 256, "intermediate_size": 512, "vocab_size": STUDENT_ROWS}
    for name, config in (
        (TEACHER, teacher | {"tie_word_embeddings": False}),
        (STUDENT, student | {"tie_word_embeddings": True}),
    ):
        torch.manual_seed(len(name))
        model: Any = new_model(config)
        model.to(torch.bfloat16).save_pretrained(root / name, max_shard_size="40MB")
        tokenizer.save(root / name)
        (root / name / "LICENSE").write_text("The text of Apache-2.0 as the publisher has it.\n", encoding="utf-8")


def sentences(generator: random.Random, count: int) -> str:
    """Japanese sentences of random words, so that no two texts are near-duplicates."""
    chosen = generator.sample(_SENTENCES, count)
    return "".join(
        sentence.format(**{slot: "".join(generator.sample(_KANJI, 2)) for slot in "abc"}) for sentence in chosen
    )


def _text(root: Path, documents: int) -> None:
    generator = random.Random(1)
    web = [
        {
            "text": "\n".join(sentences(generator, 5) for _ in range(3)),
            "id": f"<urn:uuid:{number:032x}>",
            "dump": "CC-MAIN-2024-10",
            "url": f"https://example.org/{number}",
            "date": "2024-03-01T00:00:00Z",
            "file_path": "s3://commoncrawl/example",
            "language": "jpn",
            "language_score": 1.0,
            "language_script": "Jpan",
            "minhash_cluster_size": 1,
            "top_langs": "{}",
        }
        for number in range(documents)
    ]
    half = documents // 2
    for place, rows in enumerate((web[:half], web[half:])):
        _parquet(root / WEB / "data" / "jpn_Jpan" / "train" / f"000_0000{place}.parquet", rows)
    _parquet(root / WEB / "data" / "jpn_Jpan" / "test" / "000_00000.parquet", web[:3])
    wiki = [
        {
            "id": str(number),
            "url": f"https://ja.wikipedia.org/wiki/{number}",
            "title": f"項目{number}",
            "text": sentences(generator, 8),
        }
        for number in range(documents // 2)
    ]
    _parquet(root / WIKIPEDIA / "20231101.ja" / "train-00000-of-00001.parquet", wiki)


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.Table.from_pylist(rows), path)


def _conversations(root: Path, count: int) -> None:
    generator = random.Random(2)
    numbers = range(count)
    answers = [
        answer_row(
            number,
            synthesized_assistant_responses=[turn("assistant", sentences(generator, 3)) for _ in range(6)],
        )
        for number in numbers
    ]
    translated = [
        {
            "conversation_id": f"{number:032x}",
            "translated_conversation": [turn("user", f"{sentences(generator, 1)}どう思いますか。")],
        }
        for number in numbers
    ]
    folder = root / SET / "dataset"
    write_rows(folder / ANSWERS, answers)
    plain = write_rows(folder / INSTRUCTIONS, translated)
    plain.with_name(plain.name + ".gpg").write_bytes(encrypted(plain.read_bytes()))
    plain.unlink()
    originals = [
        {
            "conversation_id": f"{number:032x}",
            "model": "m",
            "conversation": [turn("user", f"question {number}"), turn("assistant", "original answer")],
            "turn": 1,
            "language": "English",
            "openai_moderation": [{"flagged": False}],
            "redacted": False,
        }
        for number in numbers
    ]
    for place in range(2):
        _parquet(root / ORIGINAL / "data" / f"train-0000{place}-of-00002.parquet", originals[place::2])
    rows = [{"conversation": list(_pair(generator))} for _ in numbers]
    write_rows(root / MAGPIE / "train_ja.jsonl", rows)
    write_rows(root / MAGPIE / "train_en.jsonl", [{"conversation": [turn("user", "Hi"), turn("assistant", "Hello")]}])
    for name in ("LICENSE", "USE_POLICY.md", "Notice"):
        (root / MAGPIE / name).write_text(f"{name} of the publisher.\n", encoding="utf-8")
    write_rows(root / GEMMA / "train.jsonl", [{"conversation": list(_pair(generator))} for _ in numbers])


def _pair(generator: random.Random) -> Iterator[Mapping[str, Any]]:
    yield turn("user", f"{sentences(generator, 1)}説明してください。")
    yield turn("assistant", sentences(generator, 4))


def write_benchmarks(root: Path) -> None:
    """Six benchmarks in the layout of SOURCES/benchmarks."""
    generator = random.Random(3)

    def word() -> str:
        return "".join(generator.sample(_KANJI, 3))

    choices = [[word() for _ in range(5)] for _ in range(12)]
    write_rows(
        root / "jglue" / "jcommonsenseqa-v1.3" / "valid-v1.3.json",
        (
            {"q_id": number, "question": f"{word()}に最も近いものはどれか？", "label": number % 5}
            | {f"choice{place}": text for place, text in enumerate(row)}
            for number, row in enumerate(choices)
        ),
    )
    paragraphs = [
        {
            "context": f"{word()} [SEP] {sentences(generator, 2)}答えは{answer}である。",
            "qas": [{"id": f"a{number}", "question": "答えは何か？", "answers": [{"text": answer, "answer_start": 0}]}],
        }
        for number, answer in enumerate(word() for _ in range(8))
    ]
    _json(root / "jglue" / "jsquad-v1.3" / "valid-v1.3.json", {"data": [{"title": "題", "paragraphs": paragraphs}]})
    questions = [
        {
            "qid": f"q{number}",
            "type": "comparison",
            "question": f"{word()}と{word()}はどちらが長いですか？",
            "answer": word(),
        }
        for number in range(8)
    ]
    _json(root / "jemhopqa" / "corpus_ver1.2" / "dev_ver1.2.json", questions)
    asked = "".join(
        f'<question id="n{number}"><text>{word()}の首都はどこですか</text>'
        f"<answers><answer>{word()}</answer></answers></question>"
        for number in range(8)
    )
    (root / "niilc").mkdir(parents=True)
    (root / "niilc" / "NIILC-ECQA2015_test.xml").write_text(f"<questions>{asked}</questions>", encoding="utf-8")
    (root / "mgsm").mkdir()
    problems = "".join(f"{word()}が{number}個あり、三個増えた。全部で何個か？\t{number + 3}\n" for number in range(8))
    (root / "mgsm" / "mgsm_ja.tsv").write_text(problems, encoding="utf-8")
    (root / "jmmlu" / "JMMLU").mkdir(parents=True)
    with (root / "jmmlu" / "JMMLU" / "anatomy.csv").open("w", encoding="utf-8", newline="") as file:
        for number in range(8):
            csv.writer(file).writerow([f"{word()}とは何か？", *(word() for _ in range(4)), "ABCD"[number % 4]])


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
