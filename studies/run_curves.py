"""A training run as curves: from its `metrics.jsonl` into the study's JSON, and from there into the figures.

The study keeps at most 200 points of a run. A value that the run did not log is null.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.metrics import read_metrics
from distill.methods import DISTILLATION_LOSS, method
from distill.taid import TaidConfig, linear_floor
from studies.figure_curves import Array, overtaking_step

MOST_POINTS = 200


def curves_of(folder: Path, name: str, config: TaidConfig, *, steps: int) -> dict[str, Any] | None:
    """t, sigma and the loss of a trained checkpoint's run; None if the folder has no metrics.

    `step`, and for each of these steps `cross_entropy` and `kl` towards the target of the method `name`, in nats per
    token, or None if the method does not log it, and for TAID the `t` of the target and the controller's `sigma`;
    `floor_leads_from`, see there.
    """
    records = [record for record in read_metrics(folder) if "loss" in record]
    if not records:
        return None
    thin = thinned(records)
    return {
        "step": [record["step"] for record in thin],
        "cross_entropy": _values(thin, name, "cross_entropy"),
        "kl": _values(thin, name, "kl"),
        "t": [_short(record["t"]) for record in thin] if "t" in thin[0] else None,
        "sigma": [_short(sigmoid(record["t_momentum"])) for record in thin] if "t_momentum" in thin[0] else None,
        "floor_leads_from": floor_leads_from(records, config, steps=steps),
    }


def _values(
    records: Sequence[Mapping[str, Any]], name: str, value: Literal["cross_entropy", "kl"]
) -> list[float] | None:
    """One of the two over the steps: the loss that the method minimises, or a value that it logs."""
    if value in method(name).loss_kind:
        return [_short(record.get(DISTILLATION_LOSS, record["loss"])) for record in records]
    return [_short(record[value]) for record in records] if value in records[0] else None


def thinned(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Every n-th record and the last, at most MOST_POINTS."""
    stride = math.ceil(len(records) / (MOST_POINTS - 1))
    thin = list(records[::stride])
    return thin if thin[-1] is records[-1] else [*thin, records[-1]]


def sigmoid(momentum: float) -> float:
    """The sigmoid of the controller's momentum, without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * momentum))


def floor_leads_from(records: Sequence[Mapping[str, Any]], config: TaidConfig, *, steps: int) -> int | None:
    """The first step, from 1, from which t equals the linear floor until the end; None without t or such a step."""
    if "t" not in records[0]:
        return None
    # The t of a step is the controller's after the previous step.
    floor = np.array([linear_floor(one["step"] - 1, steps, config) for one in records])
    place = overtaking_step(np.array([one["t"] for one in records]), floor, tolerance=1e-9)
    return None if place is None else int(records[place]["step"])


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRun:
    """The curves of one TAID run."""

    seed: int
    step: Array
    t: Array
    sigma: Array | None
    cross_entropy: Array
    kl: Array
    floor_leads_from: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The part of a study that the figures show."""

    recipe: str
    steps: int
    config: TaidConfig
    """The controller of the runs."""
    runs: tuple[MeasuredRun, ...]
    """At least one."""


def measured(study: Mapping[str, Any]) -> Measured | None:
    """The TAID runs of a study; None if it has none with curves, or has settings of another version."""
    runs = [run for run in study.get("runs", []) if run["method"] == "taid" and (run.get("curves") or {}).get("t")]
    try:
        config = TaidConfig(**study["taid"])
    except (KeyError, TypeError):
        return None
    if not runs:
        return None
    return Measured(recipe=study["recipe"], steps=study["steps"], config=config, runs=tuple(map(_run, runs)))


def _run(run: Mapping[str, Any]) -> MeasuredRun:
    curves: dict[str, Any] = {
        name: np.array(values, dtype=np.float64) if isinstance(values, list) else values
        for name, values in run["curves"].items()
    }
    return MeasuredRun(seed=run["seed"], **curves)


def _short(number: float) -> float:
    """Six significant digits: enough to draw, and half the bytes."""
    return float(f"{number:.6g}")
