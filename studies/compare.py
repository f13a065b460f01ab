"""`make compare`, `python -m studies.compare`: is the teacher worth its cost? Several methods from one start.

Cross-entropy alone, forward KL and TAID, or whichever `--methods` names, train the same student (the recipe's
`student_before`) for the same steps on the same rows in the same order; seeds differ in that order. Every run is a
stage of the build folder, so that a study that was stopped goes on where it was, and one that is repeated only
measures. Writes `compare.json` and `compare.md`. It does not know how a method works.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import run
from common.disk import replace_text
from common.errors import UserError
from common.store import Artifact, Store
from distill.methods import METHODS, method
from distill.train import DistillConfig, distill
from eval.runtimes.torch_runtime import held_out_losses
from recipes.loading import load
from recipes.preflight import before_start
from recipes.recipe import Recipe, build, pipeline
from recipes.resolve import resolve
from studies.run_curves import curves_of
from studies.student_t import estimate, paired_difference

SHARED = ("corpus", "teacher", "student_before")
"""What all runs of a study start from."""
BASELINE = "cross_entropy"
DEFAULT_METHODS = (BASELINE, "forward_kl", "taid")
LABELS = {"cross_entropy": "cross-entropy, no teacher", "forward_kl": "forward KL", "taid": "TAID"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One trained student."""

    method: str
    seed: int
    test_loss: float
    """Nats per token on the test split."""
    seconds: float
    """Time in training steps, over all starts of the run."""
    curves: dict[str, Any] | None
    """Loss by step and, for TAID, t and sigma (`studies.run_curves`)."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)


def configs(
    base: DistillConfig, seeds: Sequence[int], methods: Sequence[str] = DEFAULT_METHODS
) -> Iterator[tuple[str, int, DistillConfig]]:
    """(method, seed, config) of every run: the recipe's distillation with another method, nothing else changed.

    Settings are those of one method: the others have their defaults, and what needs a teacher goes where there is none.
    """
    for seed in seeds:
        for name in methods:
            config = dataclasses.replace(base, seed=seed)
            if name != base.method:
                temperature = base.temperature if method(name).supports_temperature else 1.0
                on_policy = base.on_policy if method(name).needs_teacher else None
                config = dataclasses.replace(
                    config, method=name, settings=(), temperature=temperature, on_policy=on_policy
                )
            yield name, seed, config


def compare(
    recipe: Recipe, store: Store, *, num_seeds: int, methods: Sequence[str] = DEFAULT_METHODS
) -> dict[str, Any]:
    """Trains what is missing, measures every student on the test split and returns the study as JSON.

    Args:
        recipe: whose artifacts, student and distillation are taken.
        store: where they are and where the runs go.
        num_seeds: runs of each method.
        methods: names out of `distill.methods.METHODS`; cross-entropy, the baseline, is added where it is missing.

    Raises:
        UserError: fewer than one seed, an unknown method, or what a stage refuses.
    """
    base, needs_teacher = _checked(recipe, num_seeds, methods)
    last = last_shared(recipe)
    made = build(resolve(recipe, store.root, until=last), store, until=last)
    corpus, teacher, start = (made[name] for name in SHARED)
    runs: list[Run] = []
    losses, tokens = _test_loss(start, corpus, store)
    for name, seed, config in configs(base, range(base.seed, base.seed + num_seeds), tuple(needs_teacher)):
        signal = teacher if needs_teacher[name] else None
        student = store.build(f"compare_{name}_seed{seed}", distill, config, corpus, start, signal)
        test_loss, _ = _test_loss(student, corpus, store)
        facts = student.manifest["facts"]
        seconds = facts["tokens"] / facts["tokens_per_s"]
        curves = curves_of(student.folder, config.method, config.taid, steps=config.steps)
        runs.append(Run(method=name, seed=seed, test_loss=test_loss, seconds=seconds, curves=curves))
    return {
        "recipe": recipe.name,
        "machine": store.machine.to_json(),
        "steps": base.steps,
        "taid": dataclasses.asdict(base.taid),
        "corpus_tokens": base.corpus_tokens,
        "test_tokens": tokens,
        "start": {"test_loss": losses},
        "methods": summarize(runs),
        "runs": [single.to_json() for single in runs],
    }


def _checked(recipe: Recipe, num_seeds: int, methods: Sequence[str]) -> tuple[DistillConfig, dict[str, bool]]:
    """The recipe's distillation, and by method, the baseline first, whether it needs a teacher."""
    needs_teacher = {name: method(name).needs_teacher for name in dict.fromkeys((BASELINE, *methods))}
    if num_seeds < 1:
        raise UserError(wanted="at least 1 seed", got=str(num_seeds), next_step="Raise --seeds; 3 give an interval.")
    if recipe.base is None:
        raise UserError(wanted="a recipe with a distillation", got=recipe.name, next_step="Name another recipe.")
    return recipe.base, needs_teacher


def last_shared(recipe: Recipe) -> str:
    """The last artifact that a recipe builds before the runs of a study can start."""
    *_, last = (stage.name for stage in pipeline(recipe) if stage.name in SHARED)
    return last


def summarize(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row a method: its mean test loss, and the paired difference to cross-entropy, each with a 95 % t interval."""
    by_method = {
        name: sorted((single for single in runs if single.method == name), key=lambda single: single.seed)
        for name in dict.fromkeys(single.method for single in runs)
    }
    baseline = by_method[BASELINE]
    rows: list[dict[str, Any]] = []
    for name, of_method in by_method.items():
        assert [single.seed for single in of_method] == [single.seed for single in baseline], "runs pair by seed"
        losses = [single.test_loss for single in of_method]
        difference = None if name == BASELINE else paired_difference(losses, [single.test_loss for single in baseline])
        rows.append(
            {
                "method": name,
                "test_loss": estimate(losses).to_json(),
                "against_cross_entropy": None if difference is None else difference.to_json(),
                "seconds": estimate([single.seconds for single in of_method]).to_json(),
            }
        )
    return rows


def as_markdown(study: Mapping[str, Any]) -> str:
    """The study as a page with one table."""
    seeds = study["methods"][0]["test_loss"]["runs"]
    corpus = study["corpus_tokens"]
    text = "all of train" if corpus is None else f"the first {corpus:,} tokens of train"
    lines = [
        f"# Methods compared: recipe {study['recipe']}",
        "",
        f"The same student, {study['steps']:,} steps on {text}, {seeds} seed{'s' if seeds > 1 else ''} (order of the "
        f"rows). Loss in nats per token on {study['test_tokens']:,.0f} tokens of held-out test text; before, "
        f"the student stands at {study['start']['test_loss']:.3f}. Intervals: 95 %, Student's t over seeds; "
        "differences are paired by seed.",
        "",
        "| method | test loss | 95 % interval | against cross-entropy | 95 % interval | seconds a run |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in study["methods"]:
        loss, difference = row["test_loss"], row["against_cross_entropy"]
        lines.append(
            f"| {_label(row['method'])} | {loss['mean']:.3f} | {_interval(loss, '.3f')} "
            f"| {'' if difference is None else format(difference['mean'], '+.3f')} "
            f"| {'' if difference is None else _interval(difference, '+.3f')} | {row['seconds']['mean']:,.0f} |"
        )
    machine = study["machine"]
    lines += ["", f"Machine: {machine['gpu'] or machine['cpu']}, {machine['compute_dtype']}, {machine['os']}.", ""]
    return "\n".join(lines)


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").replace(" kl", " KL"))


def _interval(estimated: Mapping[str, Any], form: str) -> str:
    ends = estimated["interval"]
    return "one run: none" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def _test_loss(model: Artifact, corpus: Artifact, store: Store) -> tuple[float, float]:
    """Mean test loss of a checkpoint in nats, and the tokens that it is the mean of."""
    split = corpus.folder / "packed" / "test"
    rows = held_out_losses(model.folder, split, store.machine)
    tokens = sum(count for _, count in rows)
    if tokens == 0:
        raise UserError(
            wanted="a test split with text to measure on",
            got=f"none in {split}",
            next_step="raise the corpus' share of test in the recipe, or give more documents",
        )
    return sum(loss for loss, _ in rows) / tokens, tokens


def main(arguments: list[str]) -> None:
    """Parses the command line, runs the study and prints its page."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.compare",
        description="Compare distillation methods on held-out text, from one student and teacher.",
    )
    parser.add_argument("--recipe", default="mini", help="name or path/to/recipe.py; default: mini")
    parser.add_argument("--build", type=Path, default=Path("build"), help="build folder to reuse; default: build")
    parser.add_argument(
        "--out", type=Path, help="folder for compare.json and compare.md; default: compare in the build folder"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs a method; default: 3")
    parser.add_argument(
        "--methods",
        default=",".join(DEFAULT_METHODS),
        metavar="A,B",
        help=f"out of {', '.join(sorted(METHODS))}; default: {','.join(DEFAULT_METHODS)}",
    )
    options = parser.parse_args(arguments)
    recipe, methods = load(options.recipe, say=print, build_folder=options.build), options.methods.split(",")
    _checked(recipe, options.seeds, methods)
    # A run of the study is one like the recipe's own distillation, which its plan knows.
    print(f"{options.seeds * len({BASELINE, *methods})} runs, each like the recipe's distillation `base`")
    before_start(recipe, asked=options.recipe, build_folder=options.build, say=print, until="base", rebuild=("base",))
    study = compare(recipe, Store(options.build), num_seeds=options.seeds, methods=methods)
    page = as_markdown(study)
    out: Path = options.out or options.build / "compare"
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "compare.json", json.dumps(study, indent=2, allow_nan=False) + "\n")
    replace_text(out / "compare.md", page)
    print(page)


if __name__ == "__main__":
    run(main)
