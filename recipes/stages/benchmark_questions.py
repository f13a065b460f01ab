"""The stage that puts published benchmarks in the place of a world: their test items as `questions.jsonl`, no text.

world=BenchmarkQuestionsConfig(items_per_benchmark=1000)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.store import Workspace, stage
from eval.tasks.items import read_benchmarks
from eval.tasks.question_rows import benchmark_rows, choose_items


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkQuestionsConfig:
    """Which items."""

    benchmarks: Path | None = None
    """Folder of the benchmark files; None in a recipe, which finds it when a build starts."""
    items_per_benchmark: int | None = None
    """At most so many of each; None takes all."""

    def __post_init__(self) -> None:
        if self.items_per_benchmark is not None and self.items_per_benchmark < 1:
            raise UserError(
                wanted="items_per_benchmark of at least 1",
                got=str(self.items_per_benchmark),
                next_step="correct the recipe",
            )


@stage(version=3)
def benchmark_questions(config: BenchmarkQuestionsConfig, workspace: Workspace) -> dict[str, Any]:
    """Writes questions.jsonl.

    Returns:
        `questions`: {benchmark: {asked, available}}; `left_out`: {benchmark: why}, where its test items are missing.

    Raises:
        UserError: no folder, a damaged file in it, or no benchmark that can be scored.
    """
    if config.benchmarks is None:
        raise UserError(wanted="a folder of benchmark files", got="none", next_step="set `benchmarks` in the recipe")
    chosen, left_out = choose_items(read_benchmarks(config.benchmarks), limit=config.items_per_benchmark)
    if not chosen:
        raise UserError(
            wanted=f"test items of JCommonsenseQA, JMMLU, JSQuAD, JEMHopQA, NIILC or MGSM in {config.benchmarks}",
            got="; ".join(f"{name}: {why}" for name, why in left_out.items()) or "other files only",
            next_step="add at least one of these benchmarks",
        )
    with (workspace.folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for row in benchmark_rows(chosen):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    questions = {each.benchmark: {"asked": len(each.items), "available": each.available} for each in chosen}
    return {"questions": questions, "left_out": left_out}
