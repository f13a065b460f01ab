"""A run as curves: thinning, sigma and the floor's lead against loops, and the curves of a real run of a few steps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from training_tiny import corpus_folder, model_folder, tokenizer_folder

from common.store import run_alone
from distill.taid import TaidConfig, initial_state, next_state
from distill.train import DistillConfig, distill
from studies.run_curves import MOST_POINTS, curves_of, floor_leads_from, measured, sigmoid, thinned


@given(count=st.integers(1, 5000))
def test_thinning_keeps_both_ends_and_even_gaps(count: int) -> None:
    records = [{"step": step} for step in range(1, count + 1)]
    steps = [record["step"] for record in thinned(records)]
    assert steps[0] == 1 and steps[-1] == count and len(steps) <= MOST_POINTS
    assert len(set(np.diff(steps[:-1]))) <= 1
    assert len(steps) == count or len(steps) > MOST_POINTS / 3


@given(momentum=st.floats(-1e4, 1e4))
def test_sigma_is_the_sigmoid(momentum: float) -> None:
    assert sigmoid(momentum) == pytest.approx(scipy.special.expit(momentum), rel=1e-9, abs=1e-15)


def _records(config: TaidConfig, steps: int) -> list[dict[str, Any]]:
    """What a run logs: a step's t is the one that it was computed with."""
    state, records = initial_state(config), []
    for step in range(1, steps + 1):
        records.append({"step": step, "loss": 2.0, "kl": 0.5, "t": state.t, "t_momentum": state.t_momentum})
        state = next_state(state, 2.0, step=step, steps=steps, config=config)
    return records


@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("ramp", [0.5, 1.0])
def test_the_floor_leads_from_where_a_written_out_run_meets_it_last(alpha: float, ramp: float) -> None:
    config, steps = TaidConfig(alpha=alpha, ramp_share=ramp), 300
    t, wanted = 0.4, 1
    for step in range(1, steps + 1):
        # `t` is what this step is computed with, `floor` what the floor was when the step before it ended.
        floor = 0.4 + 0.6 * min(1.0, (step - 1) / (steps * ramp))
        if t > floor + 1e-9:
            wanted = step + 1
        if step > 1:  # the first step only stores its loss
            t = max(0.4 + 0.6 * min(1.0, step / (steps * ramp)), t + alpha * 0.5 * (1 - t))
    found = floor_leads_from(_records(config, steps), config, steps=steps)
    assert found == (wanted if wanted <= steps else None)
    assert (alpha > 0.01) is (found != 1)


def test_without_an_end_above_the_floor_there_is_no_step() -> None:
    config = TaidConfig(alpha=0.5)
    records = _records(config, 100)
    assert floor_leads_from(records[:50], config, steps=100) is None
    assert floor_leads_from([{"step": 1, "loss": 2.0}], config, steps=100) is None


def test_a_folder_without_metrics_has_no_curves(tmp_path: Path) -> None:
    assert curves_of(tmp_path, "taid", TaidConfig(), steps=5) is None


@pytest.mark.parametrize(
    ("name", "logged", "cross_entropy", "kl"),
    [
        ("forward_kl", {"loss": 3.0, "cross_entropy": 4.0}, 4.0, 3.0),
        ("taid", {"loss": 1.23456789, "kl": 0.5}, 1.23457, 0.5),
        ("taid", {"loss": 9.0, "distillation_loss": 4.0, "lm_loss": 14.0, "kl": 0.5}, 4.0, 0.5),
        ("cross_entropy", {"loss": 2.0}, 2.0, 2.0),
        ("reverse_kl", {"loss": 3.0}, None, None),
    ],
)
def test_each_loss_stands_under_its_name(
    tmp_path: Path, name: str, logged: dict[str, float], cross_entropy: float | None, kl: float | None
) -> None:
    rows = [{"step": 1, **logged}, {"step": 1, "validation_loss": 9.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = curves_of(tmp_path, name, TaidConfig(), steps=2)
    assert found is not None and found["step"] == [1]
    for value, expected in ((found["cross_entropy"], cross_entropy), (found["kl"], kl)):
        assert value == (None if expected is None else [expected])


def test_the_curves_of_a_run_are_what_its_controller_did(tmp_path: Path) -> None:
    config = TaidConfig(alpha=0.3, t_start=0.1)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _records(config, 40)))
    curves = curves_of(tmp_path, "taid", config, steps=40)
    assert curves is not None
    assert curves["t"][2] == pytest.approx(0.1 + 0.3 * 0.5 * 0.9) and set(curves["sigma"]) == {0.5}
    assert set(curves["cross_entropy"]) == {2.0} and set(curves["kl"]) == {0.5}
    study = {"recipe": "toy", "steps": 40, "taid": {"alpha": 0.3, "t_start": 0.1}}
    found = measured({**study, "runs": [{"method": "taid", "seed": 3, "curves": curves}]})
    assert found is not None and found.config == config and found.runs[0].seed == 3
    assert found.runs[0].t.tolist() == curves["t"] and found.runs[0].floor_leads_from == curves["floor_leads_from"]


@pytest.mark.slow
def test_a_real_run_has_every_curve(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder(tmp_path)
    corpus = corpus_folder(tmp_path / "corpus", tokenizer)
    student = model_folder(tmp_path / "student", tokenizer)
    teacher = model_folder(tmp_path / "teacher", tokenizer, hidden=48, seed=1)
    config = DistillConfig(method="taid", steps=5, rows_per_step=2, micro_batch_rows=2, taid=TaidConfig(alpha=0.5))
    run_alone(distill, config, tmp_path / "base", corpus, student, teacher, report=lambda line: None)
    curves = curves_of(tmp_path / "base", "taid", config.taid, steps=5)
    assert curves is not None
    assert curves["step"] == [1, 2, 3, 4, 5] and curves["t"][0] == pytest.approx(0.4)
    assert curves["t"] == sorted(curves["t"])
    gaps = np.array(curves["cross_entropy"]) - np.array(curves["kl"])
    assert (gaps > 0).all(), "the target's entropy lies between the two"
    if curves["sigma"] is not None:
        assert all(0 < sigma < 0.7311 for sigma in curves["sigma"])
