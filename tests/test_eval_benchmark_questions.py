"""Published benchmarks as questions: which items are asked, in what form, and that a sample stays itself."""

import json
from pathlib import Path

import pytest
from published_sources import write_benchmarks
from text_tiny import workspace

from common.errors import UserError
from eval.tasks.harness import Harness
from eval.tasks.items import Item, read_benchmarks
from eval.tasks.question_rows import choose_items
from recipes.stages.benchmarks import BenchmarkQuestionsConfig, benchmark_questions

BENCHMARKS = {"jcommonsenseqa": 12, "jmmlu": 8, "jsquad": 8, "jemhopqa": 8, "niilc": 8, "mgsm_ja": 8}


def item(own: str, *answers: str) -> Item:
    return Item(own, "問い", None, (), answers)


def test_every_benchmark_that_can_be_scored_is_asked(tmp_path: Path) -> None:
    write_benchmarks(tmp_path / "benchmarks")
    config = BenchmarkQuestionsConfig(benchmarks=tmp_path / "benchmarks", items_per_benchmark=10)
    facts = benchmark_questions(config, workspace(tmp_path / "out"))
    assert facts["questions"] == {
        name: {"asked": min(count, 10), "available": count} for name, count in BENCHMARKS.items()
    }
    rows = [json.loads(line) for line in (tmp_path / "out" / "questions.jsonl").read_text().splitlines()]
    items = {
        f"{name}/{each.id}": each
        for name, all_of_it in read_benchmarks(tmp_path / "benchmarks").items()
        for each in all_of_it
    }
    assert all(items[row["id"]].question == row["question"] for row in rows)
    assert all(row["answers"][0] in row["choices"] for row in rows if row["choices"])
    with Harness(tmp_path / "out") as harness:
        prompts = harness.prompts(1)
    assert len(prompts) == len(BENCHMARKS)
    assert {prompt.splitlines()[-1] for prompt in prompts} == {"答え：", "ステップごとの答え："}


def test_train_files_and_older_versions_are_not_asked() -> None:
    items = {
        "jemhopqa": [item("corpus/train:1", "a"), item("corpus/dev:1", "b"), item("corpus_ver1.2/dev_ver1.2:1", "c")],
        "niilc": [
            item("niilc/NIILC-ECQA2015_dev:1", "a"),
            item("niilc/NIILC-ECQA2015_test:1", "-"),
            item("niilc/NIILC-ECQA2015_test:2", "b", "-"),
        ],
        "mgsm_ja": [item("mgsm/exemplars_ja:1", "1"), item("mgsm/mgsm_ja:1", "2")],
        "jhumaneval": [item("jhuman-eval:1", "pass")],
    }
    found, left_out = choose_items(items, limit=None)
    chosen = {each.benchmark: [one.id for one in each.items] for each in found}
    assert left_out == {}
    assert chosen == {
        "jemhopqa": ["corpus_ver1.2/dev_ver1.2:1"],
        "niilc": ["niilc/NIILC-ECQA2015_test:2"],
        "mgsm_ja": ["mgsm/mgsm_ja:1"],
    }


def test_what_has_no_test_file_is_left_out_and_named() -> None:
    items = {
        "niilc": [item("niilc/NIILC-ECQA2015_dev:1", "a")],
        "jmmlu": [item("jmmlu/history:1", "-")],
        "mgsm_ja": [item("mgsm/mgsm_ja:1", "2")],
    }
    chosen, left_out = choose_items(items, limit=None)
    assert [each.benchmark for each in chosen] == ["mgsm_ja"]
    assert left_out == {
        "jmmlu": "wanted items with an answer, got history",
        "niilc": "wanted a file with test in its name, got NIILC-ECQA2015_dev",
    }


def test_a_smaller_sample_is_a_part_of_a_larger_one() -> None:
    items = {"mgsm_ja": [item(f"mgsm/mgsm_ja:{number}", "1") for number in range(50)]}
    (small,), (large,) = (choose_items(items, limit=limit)[0] for limit in (7, 20))
    assert small.items == large.items[:7] and small.available == 50
    assert [each.id for each in small.items] != [f"mgsm/mgsm_ja:{number}" for number in range(7)]


def test_a_folder_without_benchmarks_to_score(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "jhumaneval"
    folder.mkdir(parents=True)
    row = {"task_id": "1", "prompt": "def f():", "canonical_solution": "  pass"}
    (folder / "jhuman-eval.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError) as caught:
        benchmark_questions(BenchmarkQuestionsConfig(benchmarks=tmp_path / "benchmarks"), workspace(tmp_path / "out"))
    assert "JCommonsenseQA" in caught.value.wanted
    with pytest.raises(UserError) as caught:
        BenchmarkQuestionsConfig(items_per_benchmark=0)
    assert "items_per_benchmark" in caught.value.wanted
