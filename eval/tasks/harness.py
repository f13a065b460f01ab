"""lm-evaluation-harness as the engine: our task files and any `Runtime`, nothing from the network.

`Harness` loads the task files over `DIR/questions.jsonl` once and runs them on any number of artifacts. In the plain
form a task's text is the prompt; in the chat form it is the user's message, and the artifact's own template makes the
prompt. lm-eval builds the requests, filters the answers and scores each item; intervals and averages come from
`eval.tasks.scores`, since lm-eval averages neither over groups nor over shapes.
"""

import contextlib
import functools
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import datasets
import datasets.config
import lm_eval.api.task
import lm_eval.utils
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from eval.runtimes import Runtime
from eval.tasks import scores
from eval.tasks.harness_model import HarnessModel
from eval.tasks.question_rows import question_rows, task_files

# lm-eval compiles a task's template again for each item, which takes longer than a small model's answer.
lm_eval.utils.env.from_string = functools.cache(lm_eval.utils.env.from_string)  # pyright: ignore[reportAttributeAccessIssue]

AVERAGE = "average"
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("id", "shape", "question", "context", "group", "direction")),
    **{"choices": [], "answers": []},
}
_NO_ANSWER = ("", "[invalid]")


class Harness:
    """The tasks over one data folder, loaded; a context manager that removes its temporary files.

    Args:
        data: folder with `questions.jsonl`.
        tasks: names to run; None takes all that have questions.

    Raises:
        UserError: an unknown task, or no usable questions.
    """

    def __init__(self, data: Path, *, tasks: Sequence[str] | None = None) -> None:
        rows = question_rows(data, shapes=tasks)
        known = task_files({str(row["shape"]) for row in rows}, tasks)
        self._candidates = {str(row["id"]): _candidates(row) for row in rows}
        self._temporary = tempfile.TemporaryDirectory(prefix="tasks-")
        folder = Path(self._temporary.name)
        # All rows get all fields: datasets infers its schema from the rows, and a user's rows may lack some.
        lines = [json.dumps({field: row.get(field, empty) for field, empty in _FIELDS.items()}) for row in rows]
        (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
        kwargs = {"data_files": {"test": str(folder / "questions.jsonl")}, "cache_dir": str(folder / "cache")}
        for name, path in known.items():
            # JSON is YAML; `include` is lm-eval's own way to change one setting of a task.
            config = {"include": str(path.absolute()), "dataset_kwargs": kwargs}
            (folder / f"{name}.yaml").write_text(json.dumps(config), encoding="utf-8")
        with _offline():
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            self._tasks_and_groups: Any = manager.load(manager.all_subtasks)
        self._loaded: dict[str, Any] = self._tasks_and_groups["tasks"]
        for task in self._loaded.values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=0)

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, *exception: object) -> None:
        self._temporary.cleanup()

    def run(
        self, runtime: Runtime, *, artifact: str, form: str, limit: int | None = None, log: Path | None = None
    ) -> list[dict[str, Any]]:
        """Every task on one artifact.

        Args:
            runtime: the artifact, opened.
            artifact: its name in the rows.
            form: "plain" or "chat".
            limit: maximum number of items of a task, taken from its groups and directions in turn.
            log: folder for `<task>.jsonl`, one line for each item.

        Returns:
            Rows `artifact, task, form, metric, value, n, interval, chance, extraction_failures, stopped_share`: for
            each task, for each of its groups (`task/group`), and the task average.
        """
        assert form in ("plain", "chat"), form
        model = HarnessModel(runtime, chat=form == "chat")
        samples = None
        if limit is not None:
            samples = {name: _first(task.task_docs, limit) for name, task in self._loaded.items()}
        with _offline():
            results: Any = evaluate(
                model,
                self._tasks_and_groups,
                samples=samples,
                bootstrap_iters=0,
                apply_chat_template=form == "chat",
                fewshot_as_multiturn=True,
            )
        assert results is not None
        rows: list[dict[str, Any]] = []
        by_task: dict[str, list[dict[str, Any]]] = {}
        for name in self._loaded:
            items = [self._item(name, i, sample, model) for i, sample in enumerate(_first_filter(results, name))]
            by_task[name] = items
            chosen = "acc" if self._loaded[name].OUTPUT_TYPE == "multiple_choice" else "exact_match"
            rows += _rows(name, chosen, items)
            if log is not None:
                _write_log(log / f"{name}.jsonl", items)
        rows.append(_row(AVERAGE, "mean", by_task) | {"chance": None})
        if form == "plain":  # a base model continues after its answer: the end of the line cuts it
            rows = [row | {"stopped_share": None} for row in rows]
        return [{"artifact": artifact, "task": row.pop("task"), "form": form} | row for row in rows]

    def prompts(self, count: int) -> list[str]:
        """The first `count` prompts of each task, without a template: what a user might type."""
        return [
            str(task.doc_to_text(task.task_docs[index]))
            for task in self._loaded.values()
            for index in _first(task.task_docs, count)
        ]

    def _item(self, task: str, index: int, sample: dict[str, Any], model: HarnessModel) -> dict[str, Any]:
        """One line of the log, with the additional fields that the rows need."""
        doc, answers = sample["doc"], sample["filtered_resps"]
        generation = model.generations.get((task, index))
        if generation is None:
            likelihoods = [likelihood for likelihood, _ in answers]
            output = doc["choices"][likelihoods.index(max(likelihoods))]
        else:
            output = sample["resps"][0][0]
        return {
            "id": str(doc["id"]),
            "group": doc.get("group") or doc.get("direction"),
            "prompt": sample["arguments"][0][0],
            "output": output,
            "score": float(sample[sample["metrics"][0]]),
            "stopped": None if generation is None else generation.stopped,
            "extraction_failed": generation is not None and str(answers[0]).strip() in _NO_ANSWER,
            "answers": list(doc["answers"]),
            "candidates": self._candidates[str(doc["id"])],
        }


def _candidates(row: dict[str, Any]) -> int | None:
    """Number of answers to guess among: the choices, or what the passage offers; None if any answer is possible."""
    if row.get("choices"):
        return len(row["choices"])
    if row.get("candidates"):
        return len(row["candidates"])
    if row.get("context"):
        # A passage states one fact a sentence, so a guess picks one of its sentences.
        return len([sentence for sentence in re.split(r"[。.!?\n]", row["context"]) if sentence.strip()])
    return None


def _first(docs: Any, limit: int) -> list[int]:
    """Indices of the first `limit` documents when groups and directions take turns, in ascending order."""
    turns: Counter[tuple[Any, Any]] = Counter()
    order: list[tuple[int, int]] = []
    for index, (group, direction) in enumerate(zip(docs["group"], docs["direction"], strict=True)):
        order.append((turns[group, direction], index))
        turns[group, direction] += 1
    return sorted(index for _, index in sorted(order)[:limit])


def _first_filter(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = results["samples"][task]
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _rows(task: str, metric: str, items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The task's row, then one for each of its groups."""
    yield _row(task, metric, {task: items})
    for group in dict.fromkeys(item["group"] for item in items if item["group"]):
        yield _row(f"{task}/{group}", metric, {task: [item for item in items if item["group"] == group]})


def _row(task: str, metric: str, items_by_shape: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    cells = scores.by_cell(items_by_shape)
    value, interval = scores.mean_with_interval({cell: [i["score"] for i in items] for cell, items in cells.items()})
    items = [item for members in items_by_shape.values() for item in members]
    stopped = [item["stopped"] for item in items if item["stopped"] is not None]
    return {
        "task": task,
        "metric": metric,
        "value": value,
        "n": len(items),
        "interval": list(interval),
        "chance": _chance(items),
        "extraction_failures": sum(item["extraction_failed"] for item in items),
        "stopped_share": fmean(stopped) if stopped else None,
    }


def _chance(items: list[dict[str, Any]]) -> float | None:
    """Score of guessing: one of the candidates, or always the most common number; None where neither applies."""
    if all(item["candidates"] for item in items):
        return fmean(1 / item["candidates"] for item in items)
    if all(re.fullmatch(r"-?[0-9][0-9,.]*", answer) for item in items for answer in item["answers"]):
        counts = Counter(answer for item in items for answer in set(item["answers"]))
        return max(counts.values()) / len(items)
    return None


def _write_log(path: Path, items: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = ("id", "group", "prompt", "output", "score", "stopped", "extraction_failed")
    lines = [json.dumps({field: item[field] for field in fields}, ensure_ascii=False) for item in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _offline() -> Generator[None]:
    """lm-eval and datasets without the network, which they use even for a local file, without bars and advice."""
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval.api.task.tqdm
    offline, no_bars = datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()
    datasets.config.HF_HUB_OFFLINE = True
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda iterable, **_: iterable
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
        if not no_bars:
            datasets.enable_progress_bars()
