"""The study of the methods: its statistics against scipy and closed forms, its runs against the recipe, its page."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st
from report_tiny import MACHINE

from common.store import Artifact, Store
from distill.taid import TaidConfig
from distill.train import DistillConfig
from recipes.loading import KNOWN, load
from recipes.recipe import Stage, stages_until
from studies import compare as study
from studies import run_curves
from studies.student_t import central_probability, estimate, paired_difference, t_half_width

LOSSES = st.lists(st.floats(0.1, 10), min_size=2, max_size=8)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_t_half_width_is_scipys(degrees: int, confidence: float) -> None:
    assert t_half_width(confidence, degrees) == pytest.approx(
        scipy.stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-9
    )


@given(t=st.floats(0, 50))
def test_central_probability_has_its_closed_forms(t: float) -> None:
    assert central_probability(t, 1) == pytest.approx(2 * math.atan(t) / math.pi, abs=1e-12)
    assert central_probability(t, 2) == pytest.approx(t / math.sqrt(2 + t * t), abs=1e-12)


@given(values=LOSSES)
def test_estimate_is_scipys_interval(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.interval is not None
    if np.std(values) > 1e-6:
        wanted = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert found.interval == pytest.approx((wanted.low, wanted.high), rel=1e-6, abs=1e-9)
    else:
        assert found.interval == pytest.approx((found.mean, found.mean), abs=1e-4)


@given(values=LOSSES, shift=st.floats(-2, 2))
def test_a_shift_that_every_run_shares_has_no_spread(values: list[float], shift: float) -> None:
    found = paired_difference([value + shift for value in values], values)
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.interval == pytest.approx((shift, shift), abs=1e-6)


def test_paired_difference_is_scipys_paired_test() -> None:
    ours, theirs = [0.76, 0.75, 0.78], [0.99, 0.98, 0.97]
    found = paired_difference(ours, theirs)
    wanted = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.interval == pytest.approx((wanted.low, wanted.high))


def test_one_run_has_no_interval() -> None:
    assert dataclasses.asdict(estimate([0.7])) == {"mean": 0.7, "interval": None, "runs": 1}


def test_runs_differ_in_method_and_seed_only() -> None:
    base = DistillConfig(method="taid", taid=TaidConfig(t_start=0.3), steps=7, corpus_tokens=1234, seed=5)
    runs = list(study.configs(base, [5, 6]))
    assert [(method, seed) for method, seed, _ in runs] == [(m, s) for s in (5, 6) for m in study.DEFAULT_METHODS]
    for method, seed, config in runs:
        assert (config.method, config.seed) == (method, seed)
        assert dataclasses.replace(config, method=base.method, seed=base.seed) == base


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """As much of a recipe as the study reads."""

    name: str
    base: DistillConfig


def _fake_artifact(name: str, folder: Path) -> Artifact:
    facts = {"tokens": 600, "tokens_per_s": 200.0}
    return Artifact(
        name=name, key=name, folder=folder / name, manifest={"seconds": 0.5, "resumed": True, "facts": facts}
    )


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """A store that trains nothing: notes what it is asked for. Losses: 2.0 before; by method, rising with the seed."""
    calls: list[tuple[Any, ...]] = []
    by_method = {"cross_entropy": 0.98, "forward_kl": 0.75, "taid": 0.76}

    def build(recipe: Any, store: Store, *, until: str) -> dict[str, Artifact]:
        assert until == "teacher"
        return {name: _fake_artifact(name, tmp_path) for name in ("corpus", "teacher", "student_before")}

    def build_one(_: Store, name: str, function: Any, config: DistillConfig, *inputs: Artifact | None) -> Artifact:
        calls.append((name, function, config, [artifact and artifact.name for artifact in inputs]))
        return _fake_artifact(name, tmp_path)

    def losses(model: Path, packed: Path, _: Any) -> list[tuple[float, float]]:
        assert packed == tmp_path / "corpus" / "packed" / "test"
        if model.name == "student_before":
            return [(150.0, 50.0), (50.0, 50.0)]
        method, seed = model.name.removeprefix("compare_").split("_seed")
        mean = by_method[method] + 0.01 * int(seed)
        return [(mean * 30, 30.0), (mean * 70, 70.0)]

    monkeypatch.setattr(study, "build", build)
    stages = [Stage(name, None) for name in ("world", "student_before", "corpus", "teacher", "base")]
    monkeypatch.setattr(study, "pipeline", lambda recipe: stages)
    monkeypatch.setattr(study, "resolve", lambda recipe, folder, until: recipe)
    monkeypatch.setattr(Store, "build", build_one)
    monkeypatch.setattr(Store, "machine", MACHINE)
    monkeypatch.setattr(study, "held_out_losses", losses)
    return calls


def test_methods_are_named_and_the_baseline_is_always_there(built: list[tuple[Any, ...]], tmp_path: Path) -> None:
    recipe: Any = _Recipe(name="toy", base=DistillConfig(method="taid", steps=9))
    study.compare(recipe, Store(tmp_path), num_seeds=1, methods=["taid", "forward_kl"])
    assert [name for name, *_ in built] == [f"compare_{m}_seed0" for m in ("cross_entropy", "taid", "forward_kl")]
    with refuses("unknown-name", wanted="forward_kl", got="magic"):
        study.compare(recipe, Store(tmp_path), num_seeds=1, methods=["magic"])


def test_the_study_trains_every_method_from_the_same_start(built: list[tuple[Any, ...]], tmp_path: Path) -> None:
    recipe: Any = _Recipe(name="toy", base=DistillConfig(method="taid", steps=9, corpus_tokens=500))
    found = study.compare(recipe, Store(tmp_path), num_seeds=3)
    assert [name for name, *_ in built] == [f"compare_{m}_seed{s}" for s in range(3) for m in study.DEFAULT_METHODS]
    for name, function, config, inputs in built:
        assert function is study.distill
        assert config.steps == 9 and config.corpus_tokens == 500
        teacher = None if "cross_entropy" in name else "teacher"
        assert inputs == ["corpus", "student_before", teacher]
    assert found["start"] == {"test_loss": pytest.approx(2.0)}
    assert found["test_tokens"] == 100
    rows = {row["method"]: row for row in found["methods"]}
    assert rows["taid"]["test_loss"]["mean"] == pytest.approx(0.77)
    half = scipy.stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3)
    assert rows["taid"]["test_loss"]["interval"] == pytest.approx([0.77 - half, 0.77 + half])
    assert rows["taid"]["against_cross_entropy"]["mean"] == pytest.approx(-0.22)
    assert rows["taid"]["against_cross_entropy"]["interval"] == pytest.approx([-0.22, -0.22])
    assert rows["cross_entropy"]["against_cross_entropy"] is None
    json.dumps(found, allow_nan=False)


def test_the_study_keeps_the_curves_of_each_run(built: list[tuple[Any, ...]], tmp_path: Path) -> None:
    """A run's metrics end up beside its test loss, with the settings that the figures need; none logged, none kept."""
    rows = [{"step": step, "loss": 3.0 - step, "kl": 0.5, "t": 0.4, "t_momentum": 0.0} for step in (1, 2)]
    folder = tmp_path / "compare_taid_seed1"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taid = TaidConfig(alpha=0.3, t_start=0.4)
    recipe: Any = _Recipe(name="toy", base=DistillConfig(method="taid", taid=taid, steps=2))
    found = json.loads(json.dumps(study.compare(recipe, Store(tmp_path), num_seeds=2)))
    curves = {(run["method"], run["seed"]): run["curves"] for run in found["runs"]}
    assert [name for name, kept in curves.items() if kept is not None] == [("taid", 1)]
    assert curves["taid", 1]["cross_entropy"] == [2.0, 1.0] and curves["taid", 1]["sigma"] == [0.5, 0.5]
    measured = run_curves.measured(found)
    assert measured is not None and measured.config == taid and measured.runs[0].step.tolist() == [1, 2]


def test_the_page_says_what_the_json_says(built: list[tuple[Any, ...]], tmp_path: Path) -> None:
    recipe: Any = _Recipe(name="toy", base=DistillConfig(method="taid", steps=9, corpus_tokens=500))
    page = study.as_markdown(study.compare(recipe, Store(tmp_path), num_seeds=3))
    assert "| TAID | 0.770 | 0.745 to 0.795 | -0.220 | -0.220 to -0.220 | 3 |" in page
    assert "| cross-entropy, no teacher | 0.990 | 0.965 to 1.015 |  |  | 3 |" in page
    assert "9 steps on the first 500 tokens of train, 3 seeds" in page and "2.000" in page
    once = study.as_markdown(study.compare(recipe, Store(tmp_path), num_seeds=1))
    assert "| TAID | 0.760 | one run: none | -0.220 | one run: none | 3 |" in once


def test_the_command_writes_json_and_page(
    built: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe: Any = _Recipe(name="toy", base=DistillConfig(method="taid", steps=9, corpus_tokens=None))
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(study, "load", lambda name, **where: recipe)
    monkeypatch.setattr(study, "before_start", lambda recipe, **options: begun.append(options))
    study.main(["--build", str(tmp_path / "build"), "--out", str(tmp_path / "out"), "--seeds", "2"])
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    page = (tmp_path / "out" / "compare.md").read_text()
    assert [row["test_loss"]["runs"] for row in written["methods"]] == [2, 2, 2]
    study.main(["--build", str(tmp_path / "build"), "--seeds", "1"])
    assert (tmp_path / "build" / "compare" / "compare.md").is_file()
    assert "all of train" in page and page.strip() in capsys.readouterr().out
    asked = {"asked": "mini", "until": "base", "rebuild": ("base",)}
    assert [{name: options[name] for name in asked} for options in begun] == [asked] * 2


@pytest.mark.parametrize("name", KNOWN)
def test_every_recipe_with_a_distillation_has_what_its_runs_start_from(name: str) -> None:
    recipe = load(name, say=print)
    if recipe.base is not None:
        assert set(study.SHARED) <= {stage.name for stage in stages_until(recipe, study.last_shared(recipe))}


def test_nothing_to_measure_on_is_told_before_anything_is_trained(
    built: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "held_out_losses", lambda model, packed, machine: [])
    recipe: Any = _Recipe(name="toy", base=DistillConfig(method="taid"))
    with refuses("empty", got=str(tmp_path / "corpus" / "packed" / "test")):
        study.compare(recipe, Store(tmp_path), num_seeds=1)
    assert built == []


def test_no_seed_is_a_clear_error(built: list[tuple[Any, ...]], tmp_path: Path) -> None:
    recipe: Any = _Recipe(name="toy", base=DistillConfig())
    with refuses("out-of-range", wanted="seeds", got="0"):
        study.compare(recipe, Store(tmp_path), num_seeds=0)
