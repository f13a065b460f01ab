"""lm-evaluation-harness as the engine: our task files over `DIR/questions.jsonl` and any `Runtime`, no network.

In the plain form a task's text is the prompt; in the chat form it is the user's message, and the artifact's own
template makes the prompt. lm-eval builds the requests, filters the answers and scores each item; intervals and averages
come from `eval.tasks.scores`, since lm-eval averages neither over groups nor over shapes.
"""

import contextlib
import functools
import json
import logging
import math
import re
import tempfile
from collections import Counter
from collections.abc import Generator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import lm_eval.api.task
import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from common.store import say
from eval.runtimes.protocol import Generation, Pair, Runtime, cut_at_stop
from eval.tasks import scores
from eval.tasks.question_rows import question_rows, task_files

# lm-eval compiles a task's template again for each item, which takes longer than a small model's answer.
lm_eval.utils.env.from_string = functools.cache(lm_eval.utils.env.from_string)  # pyright: ignore[reportAttributeAccessIssue]

AVERAGE = "average"
DEFAULT_MAX_TOKENS = 256  # lm-eval's own
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("id", "shape", "question", "context", "group", "direction")),
    **{"choices": [], "answers": []},
}
_LOGGED = ("id", "group", "prompt", "output", "score", "stopped", "extraction_failed")
_NO_ANSWER = ("", "[invalid]")


class Harness:
    """The tasks over one folder with `questions.jsonl`, loaded once for any number of artifacts.

    A context manager that removes its temporary files. It runs the named `tasks`; None takes all that have questions.
    Raises UserError for an unknown task, or without usable questions.
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
        chosen = None
        if limit is not None:
            chosen = {name: _first(task.task_docs, limit) for name, task in self._loaded.items()}
        with _offline():
            results: Any = evaluate(
                model,
                self._tasks_and_groups,
                samples=chosen,
                bootstrap_iters=0,
                apply_chat_template=form == "chat",
                fewshot_as_multiturn=True,
            )
        assert results is not None
        rows: list[dict[str, Any]] = []
        by_task: dict[str, list[dict[str, Any]]] = {}
        for name, task in self._loaded.items():
            samples: list[dict[str, Any]] = results["samples"][name]
            first_filter = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
            items = by_task[name] = [self._item(name, i, sample, model) for i, sample in enumerate(first_filter)]
            metric = "acc" if task.OUTPUT_TYPE == "multiple_choice" else "exact_match"
            rows.append(scores.task_row(name, metric, {name: items}))
            if long := sum(task == name for task, _ in model.too_long):
                lost = f"{long} of {len(items)} items of {name} do not fit {runtime.context_tokens} tokens"
                say(f"warning: {lost}, the model's context, and count as wrong")
            for group in dict.fromkeys(item["group"] for item in items if item["group"]):
                of_group = [item for item in items if item["group"] == group]
                rows.append(scores.task_row(f"{name}/{group}", metric, {name: of_group}))
            if log is not None:
                lines = [json.dumps({field: item[field] for field in _LOGGED}, ensure_ascii=False) for item in items]
                log.mkdir(parents=True, exist_ok=True)
                (log / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        rows.append(scores.task_row(AVERAGE, "mean", by_task) | {"chance": None})
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

    def _item(self, task: str, index: int, sample: dict[str, Any], model: "HarnessModel") -> dict[str, Any]:
        """One line of the log, with the additional fields that the rows need."""
        doc, answers = sample["doc"], sample["filtered_resps"]
        generation, is_long = model.generations.get((task, index)), (task, index) in model.too_long
        if generation is None:
            output = max(zip(answers, doc["choices"], strict=False), key=lambda each: each[0][0])[1]
        else:
            output = sample["resps"][0][0]
        return {
            "id": str(doc["id"]),
            "group": doc.get("group") or doc.get("direction"),
            "prompt": sample["arguments"][0][0],
            "output": output,
            "score": 0.0 if is_long else float(sample[sample["metrics"][0]]),
            "stopped": None if generation is None else generation.stopped,
            "extraction_failed": is_long or (generation is not None and str(answers[0]).strip() in _NO_ANSWER),
            "answers": list(doc["answers"]),
            "candidates": self._candidates[str(doc["id"])],
        }


class HarnessModel(LM):
    """Any runtime as a model of lm-eval, which passes strings, while a runtime takes ids of its own tokenizer.

    Greedy decoding only. With `chat`, prompts come from `apply_chat_template`.
    """

    def __init__(self, runtime: Runtime, *, chat: bool) -> None:
        super().__init__()
        self._runtime, self._chat = runtime, chat
        self._rendered: dict[str, list[int]] = {}
        self.generations: dict[tuple[str | None, int | None], Generation] = {}
        """Generated answers by task and number of the document."""
        self.too_long: set[tuple[str | None, int | None]] = set()
        """Items that do not fit the context, by task and number of the document."""

    @property
    def tokenizer_name(self) -> str:
        return ""  # names lm-eval's request cache, which is off

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt as text; its ids are kept, since encoding the text would not restore them."""
        assert add_generation_prompt, "tasks with gen_prefix are not for the chat form"
        ids = self._runtime.render(chat_history)
        text = self._runtime.decode(ids, skip_special=False)
        self._rendered[text] = ids
        return text

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        pairs = self._pairs([request.arguments for request in requests])
        fits = [self._fits(request, sum(map(len, pair))) for request, pair in zip(requests, pairs, strict=True)]
        scored = iter(self._runtime.score([pair for pair, fit in zip(pairs, fits, strict=True) if fit]))
        return [next(scored) if fit else (-math.inf, False) for fit in fits]

    def _fits(self, request: Instance, num_tokens: int) -> bool:
        """Whether an item fits the context; one that does not is noted, and counts as wrong."""
        if num_tokens > self._runtime.context_tokens:
            self.too_long.add((request.task_name, request.doc_id))
        return num_tokens <= self._runtime.context_tokens

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        results: list[float] = []
        for request in requests:
            windows = get_rolling_token_windows(
                self._runtime.encode(request.args[0]),
                prefix_token=self._runtime.document_end_id,
                max_seq_len=self._runtime.context_tokens - 1,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            results.append(sum(score for score, _ in self._runtime.score(pairs)))
        return results

    def generate_until(self, requests: list[Instance]) -> list[str]:
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index, request in enumerate(requests):
            options: Any = request.arguments[1]
            until = options.get("until") or ()
            until = (until,) if isinstance(until, str) else tuple(until)
            groups.setdefault((int(options.get("max_gen_toks", DEFAULT_MAX_TOKENS)), until), []).append(index)
        texts: dict[int, str] = {}
        for (max_tokens, until), members in groups.items():
            prompts = [self._prompt(requests[index].args[0]) for index in members]
            # A chat answer must end by itself: it is decoded to its end and cut afterwards.
            stop = () if self._chat else until
            fits = [
                self._fits(requests[index], len(prompt) + max_tokens)
                for index, prompt in zip(members, prompts, strict=True)
            ]
            fitting = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
            answers = iter(self._runtime.generate(fitting, max_tokens=max_tokens, stop=stop))
            for index, fit in zip(members, fits, strict=True):
                answer = next(answers) if fit else Generation(text="", ids=[], stopped=False)
                self.generations[requests[index].task_name, requests[index].doc_id] = answer
                text = _said(answer.text) if self._chat else answer.text
                cut = cut_at_stop(text, until)
                texts[index] = text if cut is None else cut
        return [texts[index] for index in range(len(requests))]

    def _prompt(self, text: str) -> list[int]:
        """Ids of a rendered conversation, or of a plain prompt; an empty prompt is the start of a document."""
        if self._chat:
            return self._rendered[text]
        return self._runtime.encode(text) or [self._runtime.document_end_id]

    def _pairs(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Context and continuation ids.

        A plain text is encoded whole, as in training. Where a token then crosses the boundary, the boundary moves back
        to the last token that the context and all its continuations share, so that all are compared on the same
        characters.
        """
        if self._chat:
            return [(self._rendered[context], self._runtime.encode(text)) for context, text in texts]
        wholes = [self._runtime.encode(context + text) for context, text in texts]
        shared: dict[str, int] = {}
        for (context, _), whole in zip(texts, wholes, strict=True):
            both = zip(self._runtime.encode(context), whole[:-1], strict=False)
            common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
            shared[context] = min(common, shared.get(context, common))
        start = [self._runtime.document_end_id]
        return [
            (whole[: shared[context]] or start, whole[shared[context] :])
            for (context, _), whole in zip(texts, wholes, strict=True)
        ]


def _said(answer: str) -> str:
    """A chat model's answer without its thoughts and the blank lines before it; "" where the thoughts do not end."""
    thoughts, end, said = answer.partition("</think>")
    if not end and thoughts.lstrip().startswith("<think>"):
        return ""
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", said if end else answer)


def _candidates(row: dict[str, Any]) -> int | None:
    """Number of answers to guess among: the choices, or what the passage offers; None if any answer is possible."""
    listed = row.get("choices") or row.get("candidates")
    if listed:
        return len(listed)
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


@contextlib.contextmanager
def _offline() -> Generator[None]:
    """lm-eval and datasets without the network, which they use even for a local file, without bars and advice."""
    logger, no_bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level, bar, offline = logger.level, lm_eval.api.task.tqdm, datasets.config.HF_HUB_OFFLINE
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm, datasets.config.HF_HUB_OFFLINE = lambda iterable, **_: iterable, True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm, datasets.config.HF_HUB_OFFLINE = bar, offline
        if not no_bars:
            datasets.enable_progress_bars()
