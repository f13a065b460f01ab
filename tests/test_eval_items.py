"""Readers of benchmark files: each published shape, damaged files, and the real files where they are at hand."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses

from eval.tasks.items import TURN_BREAK, Item, read_benchmarks

COMMONSENSE = {"q_id": 7, "question": "青い道は？", "label": 1} | {f"choice{n}": c for n, c in enumerate("空海川山谷")}
SQUAD = {
    "data": [
        {
            "title": "梅雨",
            "paragraphs": [
                {
                    "context": "梅雨 [SEP] 梅雨は、雨の多い期間。",
                    "qas": [
                        {"id": "a1", "question": "梅雨とは？", "answers": [{"text": "期間"}, {"text": "雨の期間"}]}
                    ],
                }
            ],
        }
    ]
}
HOP = {"qid": "h1", "type": "comparison", "question": "どちらが古い？", "answer": "YES"}
NIILC = """<?xml version='1.0' encoding="UTF-8"?>
<questions>
<question id="N-1">
  <text>何年に一度？</text>
  <answers>
    <answer>4年</answer>
    <answer>四年</answer>
    <answer></answer>
  </answers>
</question>
</questions>
"""
HUMAN = {
    "task_id": "JHumanEval/0",
    "prompt": "def f():\n",
    "canonical_solution": "    return 1\n",
    "test": "assert f()",
}
TURNS = {"question_id": 3, "category": "coding", "turns": ["書いて。", "直して。"]}
REFERENCE = {"question_id": 3, "choices": [{"index": 0, "turns": ["書いた。", "直した。"]}]}
OWN = {
    "id": "reading-0001",
    "shape": "reading",
    "group": "a",
    "context": "町の話。",
    "question": "誰？",
    "choices": [],
    "answers": ["春子"],
}


def _json(path: Path, value: Any) -> Path:
    return _text(path, json.dumps(value, ensure_ascii=False))


def _lines(path: Path, *rows: Any) -> Path:
    return _text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


PUBLISHED: dict[str, tuple[Callable[[Path], Any], str, list[Item]]] = {
    "jcommonsenseqa": (
        lambda folder: _lines(folder / "jglue/jcommonsenseqa-v1.3_valid-v1.3.json", COMMONSENSE),
        "jcommonsenseqa",
        [Item("jglue/jcommonsenseqa-v1.3_valid-v1.3:7", "青い道は？", None, tuple("空海川山谷"), ("海",))],
    ),
    "jcommonsenseqa in its repository": (
        lambda folder: _lines(folder / "datasets/jcommonsenseqa-v1.1/train-v1.1.json", COMMONSENSE),
        "jcommonsenseqa",
        [Item("datasets/jcommonsenseqa-v1.1/train-v1.1:7", "青い道は？", None, tuple("空海川山谷"), ("海",))],
    ),
    "jsquad": (
        lambda folder: _json(folder / "jsquad-v1.1_valid-v1.1.json", SQUAD),
        "jsquad",
        [Item("jsquad-v1.1_valid-v1.1:a1", "梅雨とは？", "梅雨は、雨の多い期間。", (), ("期間", "雨の期間"))],
    ),
    "jmmlu": (
        lambda folder: _text(
            folder / "JMMLU/anatomy.csv", '\ufeff"臓器は、\nどれ？",肺,"胃, 腸",骨,皮,B\r\n次は？,a,b,c,d,D\n'
        ),
        "jmmlu",
        [
            Item("JMMLU/anatomy:1", "臓器は、\nどれ？", None, ("肺", "胃, 腸", "骨", "皮"), ("胃, 腸",)),
            Item("JMMLU/anatomy:2", "次は？", None, ("a", "b", "c", "d"), ("d",)),
        ],
    ),
    "jemhopqa": (
        lambda folder: [
            _json(folder / f"jemhopqa/corpus{name}.json", [HOP]) for name in ("_dev", "_ver1.2_train_ver1.2")
        ],
        "jemhopqa",
        [
            Item("jemhopqa/corpus_dev:h1", "どちらが古い？", None, (), ("YES",)),
            Item("jemhopqa/corpus_ver1.2_train_ver1.2:h1", "どちらが古い？", None, (), ("YES",)),
        ],
    ),
    "niilc": (
        lambda folder: _text(folder / "niilc/NIILC-ECQA2015_test.xml", NIILC),
        "niilc",
        [Item("niilc/NIILC-ECQA2015_test:N-1", "何年に一度？", None, (), ("4年", "四年"))],
    ),
    "mgsm_ja": (
        lambda folder: [
            _text(folder / "mgsm/mgsm_ja.tsv", "りんごは\u2028何個？\t5,600\n"),
            _json(
                folder / "mgsm/exemplars_ja.json",
                {"1": {"q": "問題：何個？", "a": "ステップごとの答え：2+3=5。答えは5：です。"}},
            ),
        ],
        "mgsm_ja",
        [
            Item("mgsm/exemplars_ja:1", "何個？", None, (), ("2+3=5。答えは5：です。",)),
            Item("mgsm/mgsm_ja:1", "りんごは\u2028何個？", None, (), ("5,600",)),
        ],
    ),
    "mgsm_en": (
        lambda folder: _text(folder / "mgsm_en.tsv", 'How "many"?\t5\r\n\r\n'),
        "mgsm_en",
        [Item("mgsm_en:1", 'How "many"?', None, (), ("5",))],
    ),
    "jhumaneval": (
        lambda folder: _lines(folder / "jhumaneval/jhuman-eval.jsonl", HUMAN),
        "jhumaneval",
        [Item("jhumaneval/jhuman-eval:JHumanEval/0", "def f():\n", None, (), ("    return 1\n",))],
    ),
    "jmtbench": (
        lambda folder: [
            _lines(folder / "jmtbench_swallow/question.jsonl", TURNS, TURNS | {"question_id": 4}),
            _lines(folder / "jmtbench_swallow/reference_answer_gpt-4o.jsonl", REFERENCE),
        ],
        "jmtbench",
        [
            Item(
                "jmtbench_swallow/question:3",
                f"書いて。{TURN_BREAK}直して。",
                None,
                (),
                (f"書いた。{TURN_BREAK}直した。",),
            ),
            Item("jmtbench_swallow/question:4", f"書いて。{TURN_BREAK}直して。", None, (), ()),
        ],
    ),
    "jmtbench in its repository": (
        lambda folder: [
            _lines(folder / "japanese_mt_bench/question_full.jsonl", TURNS),
            _lines(folder / "japanese_mt_bench/reference_answer/gpt-4.jsonl", REFERENCE),
        ],
        "jmtbench",
        [
            Item(
                "japanese_mt_bench/question_full:3",
                f"書いて。{TURN_BREAK}直して。",
                None,
                (),
                (f"書いた。{TURN_BREAK}直した。",),
            )
        ],
    ),
    "questions": (
        lambda folder: _lines(folder / "questions.jsonl", OWN, {"id": "b", "question": "何？", "context": None}),
        "questions",
        [Item("questions:reading-0001", "誰？", "町の話。", (), ("春子",)), Item("questions:b", "何？", None, (), ())],
    ),
}


@pytest.mark.parametrize("shape", PUBLISHED)
def test_each_published_shape(tmp_path: Path, shape: str) -> None:
    write, name, items = PUBLISHED[shape]
    write(tmp_path)
    assert read_benchmarks(tmp_path) == {name: items}


def test_compressed_as_published(tmp_path: Path) -> None:
    path = tmp_path / "data" / "jhuman-eval.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(json.dumps(HUMAN).encode() + b"\n"))
    assert [item.id for item in read_benchmarks(tmp_path)["jhumaneval"]] == ["data/jhuman-eval:JHumanEval/0"]


def test_all_together_and_other_files_beside_them(tmp_path: Path) -> None:
    for write, _, _ in PUBLISHED.values():
        write(tmp_path)
    _text(tmp_path / "jglue/SOURCE.json", "{")
    _text(tmp_path / "jemhopqa/SOURCE.json", "{")
    _text(tmp_path / "notes/anatomy.csv", "no benchmark")
    found = read_benchmarks(tmp_path)
    assert list(found) == [
        *("jcommonsenseqa", "jsquad", "jmmlu", "jemhopqa", "niilc", "mgsm_ja", "mgsm_en", "jhumaneval", "jmtbench"),
        "questions",
    ]
    assert len(found["jcommonsenseqa"]) == 2 and len(found["jmtbench"]) == 3


def test_the_folder_of_one_benchmark(tmp_path: Path) -> None:
    PUBLISHED["jmmlu"][0](tmp_path)
    assert [item.id for item in read_benchmarks(tmp_path / "JMMLU")["jmmlu"]] == ["anatomy:1", "anatomy:2"]


@pytest.mark.parametrize("folder", ["absent", "empty", "other"])
def test_no_known_file(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    _text(tmp_path / "other" / "train.json", "[]")
    with refuses("not-found", wanted=str(tmp_path / folder)) as caught:
        read_benchmarks(tmp_path / folder)
    assert re.search(r"jglue/jcommonsenseqa.*questions\.jsonl", caught[0].wanted)


DAMAGED: list[tuple[str, bytes, str]] = [
    ("jglue/jcommonsenseqa-v1.3_valid-v1.3.json", json.dumps(COMMONSENSE).encode() + b'\n{"q_id": 1}\n', "line 2: "),
    ("jglue/jcommonsenseqa-v1.3_valid-v1.3.json", json.dumps(COMMONSENSE).encode() + b'\n{"q_id"', "line 2: "),
    ("jglue/jcommonsenseqa-v1.3_valid-v1.3.json", json.dumps(COMMONSENSE | {"label": 5}).encode(), "line 1: label 5"),
    ("jglue/jcommonsenseqa-v1.3_valid-v1.3.json", b"\n", "no item"),
    ("jglue/jsquad-v1.3_valid-v1.3.json", b'{\n"data": [', "line 2: invalid JSON"),
    ("jglue/jsquad-v1.3_valid-v1.3.json", b'{"data": [{"title": "a"}]}', "article a: no paragraphs"),
    ("jglue/jsquad-v1.3_valid-v1.3.json", b'{"data": [3]}', "an article: no paragraphs"),
    ("jglue/jsquad-v1.3_valid-v1.3.json", b"[" * 100_000, "nested"),
    ("jmmlu/anatomy.csv", b"q,a,b,c,d,A\nq,a,b,c,A\n", "line 2: "),
    ("jmmlu/anatomy.csv", b"q,a,b,c,d,E\n", "line 1: "),
    ("jmmlu/anatomy.csv", b"q,a,b,c,d,A\nq,a,\xff,c,d,A\n", "invalid UTF-8 in line 2"),
    ("jemhopqa/corpus_dev.json", b"{}", "not a list"),
    ("jemhopqa/corpus_dev.json", b'[{"qid": "1", "question": "?", "answer": null}]', "question 1: no answer"),
    ("niilc/NIILC-ECQA2015_dev.xml", b"<questions>\n<question>\n</questions>", "line 3: invalid XML"),
    ("niilc/NIILC-ECQA2015_dev.xml", b'<questions><question id="N-2"/></questions>', "question N-2: no text"),
    ("mgsm/mgsm_ja.tsv", b"a\t1\nb 2\n", "line 2: "),
    ("mgsm/exemplars_ja.json", b"[]", "not an object"),
    ("mgsm/exemplars_ja.json", b'{"1": {"q": "a"}}', "exemplar 1: no a,"),
    (
        "jhumaneval/jhuman-eval.jsonl",
        json.dumps(HUMAN | {"prompt": 3}).encode() + b"\n",
        "line 1: field prompt is not text",
    ),
    ("jhumaneval/jhuman-eval.jsonl.gz", gzip.compress(b"{}\n" * 1000, mtime=0)[:-20], "ended before"),
    ("jmtbench/question.jsonl", json.dumps(TURNS | {"turns": [1]}).encode() + b"\n", "line 1: turns"),
    ("questions.jsonl", json.dumps(OWN).encode() + b'\n{"question": "?", "answers": 3}\n', "line 2: answers"),
    ("questions.jsonl", b'{"question": "?", "context": 3}\n', "line 1: context"),
]


@pytest.mark.parametrize(("name", "data", "reason"), DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    path = _text(tmp_path / name, "")
    path.write_bytes(data)
    with refuses("damaged", wanted=str(path), got=reason):
        read_benchmarks(tmp_path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [({"question_id": 3, "choices": []}, "empty choices"), ({"question_id": 3, "choices": [{}]}, "no turns")],
)
def test_a_damaged_reference_is_named(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    _lines(tmp_path / "jmtbench/question.jsonl", TURNS)
    _lines(tmp_path / "jmtbench/reference_answer_a.jsonl", REFERENCE, row)
    with refuses("damaged", got=reason) as caught:
        read_benchmarks(tmp_path)
    assert "reference_answer_a.jsonl" in caught[0].got and "line 2" in caught[0].got


@pytest.mark.shared_data
def test_the_real_files(shared_data: Path) -> None:
    found = read_benchmarks(shared_data)
    # The sizes that the publishers state; JMMLU has eight of its subjects there.
    assert {name: len(items) for name, items in found.items()} == {
        "jcommonsenseqa": 8_939 + 1_119,
        "jsquad": 4_442,
        "jmmlu": sum(len(path.read_text("utf-8").splitlines()) for path in (shared_data / "jmmlu").glob("*.csv")),
        "jemhopqa": 2 * (1_059 + 120),
        "niilc": 800,
        "mgsm_ja": 250 + 8,
        "mgsm_en": 250,
        "jhumaneval": 164,
        "jmtbench": 80,
    }
    items = [item for several in found.values() for item in several]
    assert len({item.id for item in items}) == len(items)
    assert all(item.question.strip() and item.answers and all(item.answers) for item in items)
    assert all(item.answers[0] in item.choices for item in items if item.choices)
    assert len({item.context for item in found["jsquad"]}) == 1_145
    assert not any("[SEP]" in (item.context or "") for item in items)
    assert sum(TURN_BREAK in item.question for item in found["jmtbench"]) == 80
