"""The lm-eval task files over the embedded world's questions: prompts, targets, what a filter takes for the answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from toy_world_sample import sample

from recipes.toy_world.draft import Question

FOLDER = Path(__file__).parents[1] / "eval" / "tasks" / "questions"
SHAPES = ("multiple_choice", "short_answer", "reading", "arithmetic", "translation")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tasks, loaded by lm-eval itself over a folder with `questions.jsonl`."""
    folder = tmp_path_factory.mktemp("data")
    lines = [json.dumps(row, ensure_ascii=False) for row in sample().questions]
    (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    kwargs = {"data_files": {"test": str(folder / "questions.jsonl")}, "cache_dir": str(folder / "cache")}
    for shape in SHAPES:
        config = {"include": str(FOLDER / f"{shape}.yaml"), "dataset_kwargs": kwargs}
        (folder / f"{shape}.yaml").write_text(json.dumps(config))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load(list(SHAPES))["tasks"]


def _rows(shape: str) -> list[dict[str, Any]]:
    return [row for row in sample().questions if row["shape"] == shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_task_asks_its_shape_in_the_form_of_the_documents(tasks: dict[str, Any], shape: str) -> None:
    docs = list(tasks[shape].test_docs())
    assert [doc["id"] for doc in docs] == [row["id"] for row in _rows(shape)]
    for doc, row in zip(docs, _rows(shape), strict=True):
        asked = Question(
            shape=shape,
            question=row["question"],
            answers=tuple(row["answers"]),
            direction=row["direction"],
            context=row["context"],
            choices=tuple(row["choices"]),
        )
        assert tasks[shape].doc_to_text(doc) == asked.prompt
        target = tasks[shape].doc_to_target(doc)
        assert (doc["choices"][target] if shape == "multiple_choice" else target[0]) == row["answers"][0]


def test_every_choice_follows_the_cue_directly(tasks: dict[str, Any]) -> None:
    doc = next(iter(tasks["multiple_choice"].test_docs()))
    made = tasks["multiple_choice"].construct_requests(doc, "答え：", metadata=("multiple_choice", 0, 1))
    assert [one.args for one in made] == [("答え：", choice) for choice in doc["choices"]]


@pytest.mark.parametrize(
    ("shape", "reply", "taken"),
    [
        ("short_answer", "大工", "大工"),
        ("short_answer", "大工です。", "大工"),
        ("short_answer", " 「止まる」です。\n次", "止まる"),
        ("short_answer", "大工。\n質問：", "大工"),
        ("short_answer", "", "[invalid]"),
        ("reading", "23歳です。", "23歳"),
        ("reading", "水族館", "水族館"),
        ("arithmetic", "3+4=7。答えは7個。", "7"),
        ("arithmetic", "5+3=8、8-6=2。答えは2枚。", "2"),
        ("arithmetic", "1,200円", "1200"),
        ("arithmetic", "分かりません。", "[invalid]"),
        ("translation", "The cat eats fish. ", "The cat eats fish."),
        ("translation", "猫は魚を食べます。\n英語：", "猫は魚を食べます。"),
    ],
)
def test_what_a_filter_takes_for_the_answer(tasks: dict[str, Any], shape: str, reply: str, taken: str) -> None:
    doc = next(iter(tasks[shape].test_docs()))
    request = Instance(request_type="generate_until", doc=doc, arguments=("", {}), idx=0, resps=[reply])
    tasks[shape]._instances = [request]
    tasks[shape].apply_filters()
    (found,) = request.filtered_resps.values()
    assert found == taken


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_what_training_says_scores_and_another_answer_does_not(tasks: dict[str, Any], shape: str) -> None:
    for doc in list(tasks[shape].test_docs())[:20]:
        assert tasks[shape].process_results(doc, [doc["answers"][0]]) == {"exact_match": 1.0}
        assert tasks[shape].process_results(doc, ["別の答え"]) == {"exact_match": 0.0}


def test_answers_are_short_enough_to_be_generated_whole(tasks: dict[str, Any]) -> None:
    for shape in SHAPES[1:]:
        limit = tasks[shape].config.generation_kwargs["max_gen_toks"]
        assert max(len(row["answers"][0]) for row in _rows(shape)) < limit
