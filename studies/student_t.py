"""Intervals for the mean of a few runs: Student's t, for samples too small for a normal approximation."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over independent runs and its two-sided interval."""

    mean: float
    interval: tuple[float, float] | None
    """None for a single run, which has no spread."""
    runs: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t interval of independent values: mean +- t * s / sqrt(n), with n - 1 degrees of freedom."""
    assert values, "no value to take the mean of"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean=mean, interval=None, runs=1)
    half = t_half_width(CONFIDENCE, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean=mean, interval=(mean - half, mean + half), runs=len(values))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Mean of `values[i] - baseline[i]` and its t interval; what both runs of a pair share cancels."""
    return estimate([value - base for value, base in zip(values, baseline, strict=True)])


def t_half_width(confidence: float, degrees: int) -> float:
    """The t with P(|T| <= t) = confidence for whole degrees of freedom, by bisection."""
    assert 0 < confidence < 1 and degrees >= 1
    low, high = 0.0, 1.0
    while central_probability(high, degrees) < confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if central_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return high


def central_probability(t: float, degrees: int) -> float:
    """P(|T| <= t) in closed form (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= math.cos(theta) ** 2 * power / (power + 1)
    series = math.sin(theta) * total
    return 2 / math.pi * (theta + series) if odd else series
