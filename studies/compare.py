"""`make compare`, `python -m studies.compare`: is the teacher worth its cost? Several methods from one start.

Cross-entropy alone, forward KL and TAID, or those of `--methods`, train the same student (the recipe's
`student_before`) for the same steps on the same rows in the same order; seeds change that order. Every run is a stage
of the build folder, so a stopped study continues, and a repeated one only measures. Writes `compare.json` and
`compare.md`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import command, run
from common.disk import replace_text
from common.errors import UserError, require_at_least
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
class StudyRun:
    """One trained student."""

    method: str
    seed: int
    test_loss: float
    """Nats per token on the test split."""
    seconds: float
    """Time in training steps, over all starts of the run."""
    curves: dict[str, Any] | None
    """Loss by step and, for TAID, t and sigma (`studies.run_curves`)."""


def configs(
    base: DistillConfig, seeds: Sequence[int], methods: Sequence[str] = DEFAULT_METHODS
) -> Iterator[tuple[str, int, DistillConfig]]:
    """(method, seed, config) of every run: the recipe's distillation with only the method changed.

    Settings belong to one method: the others use their defaults, and without a teacher there is no `on_policy`.
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
    """Train what is missing, measure every student on the test split and return the study as JSON.

    `methods` are names of `distill.methods.METHODS`; the baseline, cross-entropy, is added if it is missing. UserError
    for fewer than one seed (runs of each method), an unknown method, or what a stage refuses.
    """
    base, needs_teacher = _checked(recipe, num_seeds, methods)
    last = last_shared(recipe)
    made = build(resolve(recipe, store.root, until=last), store, until=last)
    corpus, teacher, start = (made[name] for name in SHARED)
    runs: list[StudyRun] = []
    losses, tokens = _test_loss(start, corpus, store)
    for name, seed, config in configs(base, range(base.seed, base.seed + num_seeds), tuple(needs_teacher)):
        signal = teacher if needs_teacher[name] else None
        student = store.build(f"compare_{name}_seed{seed}", distill, config, corpus, start, signal)
        test_loss, _ = _test_loss(student, corpus, store)
        facts = student.manifest["facts"]
        seconds = facts["tokens"] / facts["tokens_per_s"]
        curves = curves_of(student.folder, config.method, config.taid, steps=config.steps)
        runs.append(StudyRun(method=name, seed=seed, test_loss=test_loss, seconds=seconds, curves=curves))
    return {
        "recipe": recipe.name,
        "machine": store.machine.to_json(),
        "steps": base.steps,
        "taid": dataclasses.asdict(base.taid),
        "corpus_tokens": base.corpus_tokens,
        "test_tokens": tokens,
        "start": {"test_loss": losses},
        "methods": summarize(runs),
        "runs": [dataclasses.asdict(single) for single in runs],
    }


def _checked(recipe: Recipe, num_seeds: int, methods: Sequence[str]) -> tuple[DistillConfig, dict[str, bool]]:
    """The recipe's distillation, and whether each method needs a teacher, the baseline first."""
    needs_teacher = {name: method(name).needs_teacher for name in dict.fromkeys((BASELINE, *methods))}
    require_at_least(1, seeds=num_seeds, next_step="raise --seeds; 3 give an interval")
    if recipe.base is None:
        wanted = "a recipe with a distillation"
        raise UserError("unsupported", wanted=wanted, got=recipe.name, next_step="name another recipe")
    return recipe.base, needs_teacher


def last_shared(recipe: Recipe) -> str:
    """The last artifact that the runs of a study start from."""
    *_, last = (stage.name for stage in pipeline(recipe) if stage.name in SHARED)
    return last


def summarize(runs: Sequence[StudyRun]) -> list[dict[str, Any]]:
    """For each method the mean test loss and the paired difference to cross-entropy, each with a 95 % t interval."""
    by_method: dict[str, list[StudyRun]] = {}
    for single in sorted(runs, key=lambda single: single.seed):
        by_method.setdefault(single.method, []).append(single)
    baseline = by_method[BASELINE]
    rows: list[dict[str, Any]] = []
    for name, of_method in by_method.items():
        assert [single.seed for single in of_method] == [single.seed for single in baseline], "runs pair by seed"
        losses = [single.test_loss for single in of_method]
        difference = None if name == BASELINE else paired_difference(losses, [single.test_loss for single in baseline])
        rows.append(
            {
                "method": name,
                "test_loss": dataclasses.asdict(estimate(losses)),
                "against_cross_entropy": None if difference is None else dataclasses.asdict(difference),
                "seconds": dataclasses.asdict(estimate([single.seconds for single in of_method])),
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
        f"rows). Loss in nats per token on {study['test_tokens']:,.0f} tokens of held-out test text; the student's "
        f"loss before training is {study['start']['test_loss']:.3f}. Intervals: 95 %, Student's t over seeds; "
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
    """Mean test loss of a checkpoint in nats, and its number of tokens."""
    split = corpus.folder / "packed" / "test"
    rows = held_out_losses(model.folder, split, store.machine)
    tokens = sum(count for _, count in rows)
    if tokens == 0:
        next_step = "raise the corpus' share of test in the recipe, or give more documents"
        raise UserError("empty", wanted="a test split with text", got=f"none in {split}", next_step=next_step)
    return sum(loss for loss, _ in rows) / tokens, tokens


def main(arguments: list[str]) -> None:
    """Parse the command line, run the study and print its page."""
    parser = command("studies.compare", "Compare distillation methods on held-out text, from one student and teacher.")
    add, methods, out = parser.add_argument, ",".join(DEFAULT_METHODS), "DIR for compare.json and compare.md"
    add("--recipe", default="mini", metavar="NAME", help="a recipe's name or path/to/recipe.py")
    add("--build", type=Path, default=Path("build"), metavar="DIR", help="build folder to reuse")
    add("--out", type=Path, metavar="DIR", help=f"{out} (default: compare in the build folder)")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each method")
    add("--methods", default=methods, metavar="A,B", help=f"out of {', '.join(sorted(METHODS))}")
    options = parser.parse_args(arguments)
    recipe, methods = load(options.recipe, say=print, build_folder=options.build), options.methods.split(",")
    _checked(recipe, options.seeds, methods)
    # A run of the study is one like the recipe's own distillation, which its plan knows.
    print(f"{options.seeds * len({BASELINE, *methods})} runs, each like the recipe's distillation `base`")
    before_start(recipe, asked=options.recipe, build_folder=options.build, say=print, until="base", rebuild=("base",))
    study = compare(recipe, Store(options.build), num_seeds=options.seeds, methods=methods)
    page = as_markdown(study)
    folder: Path = options.out or options.build / "compare"
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "compare.json", json.dumps(study, indent=2, allow_nan=False) + "\n")
    replace_text(folder / "compare.md", page)
    print(page)


if __name__ == "__main__":
    run(main)
