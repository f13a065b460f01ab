"""Statistics of task scores and losses: intervals, the task average, the paired comparison of two artifacts.

An item is one line of a task's log: `id`, `group` (or None), `score`. A cell is a shape and a group, whose items are
averaged first. The task average is the unweighted mean over the shapes of the mean over their groups. Pure functions,
independent of models and lm-eval.

Legend: N items of a cell, K artifacts side by side, R bootstrap resamples.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

LogItem = Mapping[str, Any]
Cell = tuple[str, str | None]
Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 1_000
_Z95 = 1.959963984540054


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share."""
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Exactly 0 and 1 at the ends, where the two terms cancel except for rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def by_cell(items_by_shape: Mapping[str, Iterable[LogItem]]) -> dict[Cell, list[LogItem]]:
    """Items by (shape, group)."""
    cells: dict[Cell, list[LogItem]] = {}
    for shape, items in items_by_shape.items():
        for item in items:
            cells.setdefault((shape, item.get("group")), []).append(item)
    return cells


def mean_with_interval(scores: Mapping[Cell, Sequence[float]]) -> tuple[float, tuple[float, float]]:
    """Mean over groups, then shapes, and its 95 % interval.

    Each cell's interval (Wilson for right or wrong, else normal) enters by its distance from the cell's mean; the
    squares of the weighted distances are added. This is the method of variance estimates recovery, which unlike a
    bootstrap keeps a width where every item is right.
    """
    mean, below, above = 0.0, 0.0, 0.0
    for weight, values in zip(_weights(list(scores)), scores.values(), strict=True):
        centre = math.fsum(values) / len(values)
        low, high = _cell_interval(values)
        mean += weight * centre
        below += (weight * (centre - low)) ** 2
        above += (weight * (high - centre)) ** 2
    return mean, (mean - math.sqrt(below), mean + math.sqrt(above))


def _cell_interval(values: Sequence[float]) -> tuple[float, float]:
    if set(values) <= {0.0, 1.0}:
        return wilson(math.fsum(values), len(values))
    array = np.asarray(values, dtype=np.float64)
    half = _Z95 * float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else math.inf
    return float(array.mean()) - half, float(array.mean()) + half


def _weights(cells: Sequence[Cell]) -> list[float]:
    """Each cell's weight: all shapes have the same, and so have the groups of one shape."""
    shapes = [shape for shape, _ in cells]
    return [1 / len(set(shapes)) / shapes.count(shape) for shape in shapes]


def task_row(task: str, metric: str, items_by_shape: Mapping[str, Sequence[LogItem]]) -> dict[str, Any]:
    """`task, metric, value, n, interval, chance, extraction_failures, stopped_share` of items.

    An item has the log's fields, `answers`, and `candidates`: how many answers a guess chooses from, or None.
    """
    cells = by_cell(items_by_shape)
    value, interval = mean_with_interval({cell: [i["score"] for i in items] for cell, items in cells.items()})
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


def _chance(items: Sequence[LogItem]) -> float | None:
    """Score of guessing: one of the candidates, or always the most common number; None where neither applies."""
    if all(item["candidates"] for item in items):
        return fmean(1 / item["candidates"] for item in items)
    if all(re.fullmatch(r"-?[0-9][0-9,.]*", answer) for item in items for answer in item["answers"]):
        counts = Counter(answer for item in items for answer in set(item["answers"]))
        return max(counts.values()) / len(items)
    return None


def read_log(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The items of `folder/<task>.jsonl` by task."""
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


def paired_difference(log_a: Path, log_b: Path, *, with_ratio: bool = False) -> dict[str, Any]:
    """Task average of a minus that of b on the items that both folders of `<task>.jsonl` hold, paired by id.

    Returns `difference`, `interval` (95 %, bootstrap over items within each shape and group), `n` items, and on request
    `ratio` of a to b with `ratio_interval`: None where the average of b is 0, or nearly.
    """
    pairs = _paired(log_a, log_b)
    mean_K, samples_RK = _bootstrap(pairs)
    a_R, b_R = samples_RK.T
    row: dict[str, Any] = {"difference": float(mean_K[0] - mean_K[1]), "interval": list(_middle(a_R - b_R))}
    row["n"] = sum(map(len, pairs.values()))
    if with_ratio:
        row |= {"ratio": None, "ratio_interval": None}
        if mean_K[1] != 0 and b_R.all():
            row |= {"ratio": float(mean_K[0] / mean_K[1]), "ratio_interval": list(_middle(a_R / b_R))}
    return row


def has_tokens(rows: Sequence[tuple[float, float]]) -> bool:
    """Whether any row of (sum, tokens) has a token."""
    return any(tokens > 0 for _, tokens in rows)


def mean_loss(rows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Loss of one model on rows of (sum in nats, tokens): `loss` per token, `interval`, `tokens`, `rows`.

    Without a token to measure on, `loss` and `interval` are None and `reason` says so.
    """
    if not has_tokens(rows):
        fields: dict[str, Any] = dict.fromkeys(("loss", "interval"))
        return fields | {"tokens": 0, "rows": len(rows), "reason": "the test split holds no token to predict"}
    mean, interval = _weighted_mean([loss for loss, _ in rows], [tokens for _, tokens in rows])
    return {"loss": mean, "interval": interval, "tokens": round(sum(t for _, t in rows)), "rows": len(rows)}


def loss_difference(rows_a: Sequence[tuple[float, float]], rows_b: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Loss of a minus that of b, nats per token, on the same rows (with tokens): `difference`, `interval`, `n` rows."""
    pairs = list(zip(rows_a, rows_b, strict=True))
    mean, interval = _weighted_mean([a - b for (a, _), (b, _) in pairs], [tokens for (_, tokens), _ in pairs])
    return {"difference": mean, "interval": interval, "n": len(pairs)}


def _weighted_mean(sums: Sequence[float], tokens: Sequence[float]) -> tuple[float, list[float]]:
    """Sum of sums over sum of tokens, and its 95 % interval over resampled rows."""
    both_N2 = np.asarray([pair for pair in zip(sums, tokens, strict=True) if pair[1] > 0], dtype=np.float64)
    mean_K, samples_RK = _bootstrap({("rows", None): both_N2})
    return float(mean_K[0] / mean_K[1]), list(_middle(samples_RK[:, 0] / samples_RK[:, 1]))


def _paired(log_a: Path, log_b: Path) -> dict[Cell, Floats]:
    """Scores [N, 2] of the items in both logs, by cell."""
    cells_a, cells_b = by_cell(read_log(log_a)), by_cell(read_log(log_b))
    pairs: dict[Cell, Floats] = {}
    for cell, items in cells_a.items():
        scores_b = {item["id"]: item["score"] for item in cells_b.get(cell, [])}
        both = [(item["score"], scores_b[item["id"]]) for item in items if item["id"] in scores_b]
        if both:
            pairs[cell] = np.asarray(both, dtype=np.float64)
    assert pairs, f"no common items in {log_a} and {log_b}"
    return pairs


def _bootstrap(values: Mapping[Cell, Floats], *, seed: int = 0) -> tuple[Floats, Floats]:
    """Weighted mean over cells of values [N, K]: itself [K], and with the items of each cell resampled [R, K]."""
    generator = np.random.default_rng(seed)
    width = next(iter(values.values())).shape[1]
    mean_K, samples_RK = np.zeros(width), np.zeros((RESAMPLES, width))
    for weight, values_NK in zip(_weights(list(values)), values.values(), strict=True):
        mean_K += weight * values_NK.mean(0)
        for start in range(0, RESAMPLES, _RESAMPLES_AT_ONCE):
            drawn = generator.integers(len(values_NK), size=(_RESAMPLES_AT_ONCE, len(values_NK)))
            samples_RK[start : start + _RESAMPLES_AT_ONCE] += weight * values_NK[drawn].mean(1)
    return mean_K, samples_RK


def _middle(samples_R: Floats) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.percentile(samples_R, (2.5, 97.5))
    return float(low), float(high)
