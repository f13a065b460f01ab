"""One training run as curves: from its `metrics.jsonl` into the study's JSON, and back for the figures.

The study keeps at most 200 points a run. What a run did not log is null. Pure but for the reading of one file; this
module knows no drawing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.metrics import read_metrics
from distill.methods import DISTILLATION_LOSS, method
from distill.taid import TaidConfig, linear_floor

MOST_POINTS = 200

Array = NDArray[np.float64]


def curves_of(folder: Path, name: str, config: TaidConfig, *, steps: int) -> dict[str, Any] | None:
    """t, sigma and the loss of a trained checkpoint's run; None where the folder has no metrics.

    Returns:
        `step`, and for each of these steps `cross_entropy` and `kl` of what the method `name` pulls to, in nats per
        token, each None where the method's log has no such value, and for TAID the `t` of the target and the
        controller's `sigma`; `floor_leads_from`: `floor_leads_from(...)`.
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
    """One of the two over the steps: what the method minimises, or what it logs beside that."""
    if value in method(name).loss_kind:
        return [_short(record.get(DISTILLATION_LOSS, record["loss"])) for record in records]
    return [_short(record[value]) for record in records] if value in records[0] else None


def thinned(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Every n-th record and the last, at most MOST_POINTS."""
    stride = math.ceil(len(records) / (MOST_POINTS - 1))
    thin = list(records[::stride])
    return thin if thin[-1] is records[-1] else [*thin, records[-1]]


def sigmoid(momentum: float) -> float:
    """What the controller makes of its momentum, without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * momentum))


def floor_leads_from(records: Sequence[Mapping[str, Any]], config: TaidConfig, *, steps: int) -> int | None:
    """The first step whose t is the linear floor's, and stays so to the end of the run.

    Returns:
        Optimizer steps, 1 for the first. None without t, or where t is above the floor in the last step as well.
    """
    if "t" not in records[0]:
        return None
    # The t that a step was computed with is the controller's after the step before.
    above = [one["step"] for one in records if one["t"] > linear_floor(one["step"] - 1, steps, config) + 1e-9]
    if not above:
        return int(records[0]["step"])
    return None if above[-1] == records[-1]["step"] else int(above[-1]) + 1


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
    """What the figures take from a study."""

    recipe: str
    steps: int
    config: TaidConfig
    """The controller of the runs."""
    runs: tuple[MeasuredRun, ...]
    """At least one."""


def measured(study: Mapping[str, Any]) -> Measured | None:
    """The TAID runs of a study; None where it holds none with curves, or its settings are of another version."""
    runs = [run for run in study.get("runs", []) if run["method"] == "taid" and (run.get("curves") or {}).get("t")]
    try:
        config = TaidConfig(**study["taid"])
    except (KeyError, TypeError):
        return None
    if not runs:
        return None
    return Measured(recipe=study["recipe"], steps=study["steps"], config=config, runs=tuple(map(_run, runs)))


def _run(run: Mapping[str, Any]) -> MeasuredRun:
    curves = run["curves"]
    return MeasuredRun(
        seed=run["seed"],
        step=np.array(curves["step"], dtype=np.float64),
        t=np.array(curves["t"]),
        sigma=None if curves["sigma"] is None else np.array(curves["sigma"]),
        cross_entropy=np.array(curves["cross_entropy"]),
        kl=np.array(curves["kl"]),
        floor_leads_from=curves["floor_leads_from"],
    )


def _short(number: float) -> float:
    """Six significant digits: enough to draw, and half the bytes."""
    return float(f"{number:.6g}")
