"""The published benchmarks' test items as `questions.jsonl`, the one form in which tasks are asked here.

`eval/tasks/benchmarks/*.yaml` ask them zero-shot: the likelihood of a choice's text, the exact match of a short answer.
These are forms of our own, and every row says so; scores in them do not compare with published ones. What needs a
sandbox (JHumanEval) or a judge (JMT-Bench) is left out. It knows no artifact.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eval.tasks.items import Item

_TEST_FILES = {
    "jcommonsenseqa": ("valid",),
    "jmmlu": ("",),
    "jsquad": ("valid",),
    "jemhopqa": ("dev_ver1.2", "dev"),
    "niilc": ("test",),
    "mgsm_ja": ("mgsm_ja",),
}
"""What a test item's file has in its name, by benchmark; the first that is there counts. The test half of JGLUE is not
published, and its authors take the validation files; NIILC's dev file is what published settings show as examples."""
_NO_ANSWER = "-"
"""What NIILC has where an item was withdrawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The items of one benchmark."""

    benchmark: str
    items: tuple[Item, ...]
    available: int
    """Test items that can be asked, chosen or not."""


def choose_items(items: Mapping[str, Iterable[Item]], *, limit: int | None) -> tuple[list[Chosen], dict[str, str]]:
    """The test items of each benchmark that is there and can be scored.

    Args:
        items: by benchmark, as `eval.tasks.items.read_benchmarks` reads them.
        limit: at most so many of a benchmark, the same ones whatever the limit of another run; None takes all.

    Returns:
        The chosen items, and of benchmarks that are there without their test items, why they are left out.
    """
    chosen: list[Chosen] = []
    left_out: dict[str, str] = {}
    for name, marks in _TEST_FILES.items():
        there = list(items.get(name, ()))
        usable = _usable(there, marks)
        if usable:
            by_digest = sorted(usable, key=lambda item: hashlib.sha256(item.id.encode()).digest())
            chosen.append(Chosen(benchmark=name, items=tuple(by_digest[:limit]), available=len(usable)))
        elif there:
            files = ", ".join(sorted({_file(item) for item in there}))
            of_test = any(mark in _file(item) for item in there for mark in marks)
            wanted = "items with an answer" if of_test else f"a file with {' or '.join(marks)} in its name"
            left_out[name] = f"wanted {wanted}, got {files}"
    return chosen, left_out


def question_rows(chosen: Iterable[Chosen]) -> Iterator[dict[str, Any]]:
    """Rows `id, shape, group, context, question, choices, answers`; the benchmark's name is their shape."""
    for benchmark in chosen:
        for item in benchmark.items:
            yield {
                "id": f"{benchmark.benchmark}/{item.id}",
                "shape": benchmark.benchmark,
                "group": None,
                "context": item.context,
                "question": item.question,
                "choices": [choice.strip() for choice in item.choices],
                "answers": [answer.strip() for answer in item.answers if answer != _NO_ANSWER],
            }


def _usable(items: list[Item], marks: tuple[str, ...]) -> list[Item]:
    for mark in marks:
        found = [item for item in items if mark in _file(item)]
        if found:
            return [item for item in found if set(item.answers) - {_NO_ANSWER}]
    return []


def _file(item: Item) -> str:
    """The name of its file, without the ending."""
    return item.id.rpartition(":")[0].rpartition("/")[2]
