"""The numbers of the article's figures: how t rises, and one Gaussian fitted to a mixture of three.

Pure functions in float64; t comes from the product's own `distill.taid`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distill.taid import TaidConfig, TaidState, linear_floor, next_state

Array = NDArray[np.float64]

STEPS = 12_000
"""Optimizer steps of the simulation, the T of the figure."""
ALPHAS = (5e-3, 1e-3, 5e-4)
"""The alphas of the figure; the last one is the released code's."""
SIGMA_BAND = (0.5, 1.0)
"""The sigma of a loss that does not fall, and the most that a sigmoid can give."""

_LOGIT_OF_ONE = 40.0  # 1 / (1 + exp(-40)) is exactly 1.0 in float64


def simulation_config(alpha: float) -> TaidConfig:
    """The controller of the simulation: t runs from 0 to 1."""
    return TaidConfig(alpha=alpha, t_start=0.0, t_end=1.0)


def t_with_sigma_held(config: TaidConfig, sigma: float, *, steps: int) -> Array:
    """t_0 to t_steps by `next_state`, its momentum set before each step so that sigma is this, 0 < sigma <= 1.

    The first step of a run only stores the loss. Here the loss is stored already: t_n has risen n times.
    """
    logit = _LOGIT_OF_ONE if sigma == 1.0 else math.log(sigma / (1.0 - sigma))
    # Under a constant loss a step halves the momentum, so it starts at twice the logit.
    config = replace(config, beta=0.5)
    values = [config.t_start]
    for step in range(1, steps + 1):
        held = TaidState(t=values[-1], previous_loss=1.0, t_momentum=2.0 * logit)
        values.append(next_state(held, 1.0, step=step, steps=steps, config=config).t)
    return np.array(values)


def floor_curve(config: TaidConfig, *, steps: int) -> Array:
    """The linear floor after 0 to `steps` steps."""
    return np.array([linear_floor(step, steps, config) for step in range(steps + 1)])


def closed_form(alpha: float, sigma: float, *, steps: int, t_start: float = 0.0) -> Array:
    """`t_n = 1 - (1 - t_0)(1 - alpha * sigma)^n` for n = 0 to steps: t above the floor for a constant sigma."""
    return 1.0 - (1.0 - t_start) * np.power(1.0 - alpha * sigma, np.arange(steps + 1, dtype=np.float64))


def overtaking_step(t: Array, floor: Array, *, tolerance: float = 1e-12) -> int | None:
    """The first index from which t stays on the floor; None if it is above the floor at the end."""
    above = np.flatnonzero(t > floor + tolerance)
    index = int(above[-1]) + 1 if len(above) else 0
    return index if index < len(t) else None


def cobweb(share: float, *, count: int, t_start: float = 0.0) -> Array:
    """The corners of the staircase between `t_next = t + share * (1 - t)` and the diagonal, as rows (t, t_next)."""
    t, corners = t_start, [(t_start, t_start)]
    for _ in range(count):
        following = t + share * (1.0 - t)
        corners += [(t, following), (following, following)]
        t = following
    return np.array(corners)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaussian:
    """One normal density: a student of two parameters."""

    mean: float
    sd: float

    def log_density(self, x: Array) -> Array:
        """log N(x; mean, sd)."""
        return -0.5 * ((x - self.mean) / self.sd) ** 2 - math.log(self.sd) - 0.5 * math.log(2.0 * math.pi)


GRID = np.linspace(-20.0, 20.0, 1601)
"""Where the densities are summed; at its ends every density is below 1e-7 of its peak."""
MIXTURE = (
    (0.55, Gaussian(mean=-2.8, sd=0.6)),
    (0.20, Gaussian(mean=0.2, sd=0.6)),
    (0.25, Gaussian(mean=5.0, sd=0.6)),
)
"""The teacher: weight and component. Unequal gaps, so that a student can hold one mode, two or all three."""
STUDENT_START = Gaussian(mean=-2.0, sd=1.0)
"""Where the fits by reverse KL and along TAID's path begin."""


def log_mixture(x: Array) -> Array:
    """The teacher's log density."""
    terms = np.stack([math.log(weight) + component.log_density(x) for weight, component in MIXTURE])
    top = terms.max(axis=0)
    return top + np.log(np.exp(terms - top).sum(axis=0))


def log_target(student: Gaussian, t: float) -> Array:
    """TAID's target `q^(1-t) p^t` on the grid, normalised to a sum of 1, as logs."""
    mixed = (1.0 - t) * student.log_density(GRID) + t * log_mixture(GRID)
    top = mixed.max()
    return mixed - (top + math.log(float(np.exp(mixed - top).sum())))


Pull = tuple[float, float]
"""The natural gradient, downhill, in (mean, log sd)."""


def _pull_to(target: Array, student: Gaussian) -> Pull:
    """Downhill on KL(target || student); the target, probabilities on the grid, is held constant."""
    offset = GRID - student.mean
    mean = float(target @ offset)
    return mean, 0.5 * (float(target @ offset**2) / student.sd**2 - 1.0)


def _reverse_pull(student: Gaussian) -> Pull:
    """Downhill on KL(student || teacher): the covariances under the student of its features with log p - log q."""
    log_q = student.log_density(GRID)
    weights = np.exp(log_q) / np.exp(log_q).sum()
    gap = log_mixture(GRID) - log_q
    gap = weights * (gap - float(weights @ gap))
    offset = GRID - student.mean
    return float(gap @ offset), 0.5 * float(gap @ offset**2) / student.sd**2


def _settle(student: Gaussian, pull: Callable[[Gaussian], Pull], rate: float = 0.3) -> Gaussian:
    """Follows the pull until it vanishes."""
    for _ in range(20_000):
        mean, log_sd = pull(student)
        student = Gaussian(mean=student.mean + rate * mean, sd=student.sd * math.exp(rate * log_sd))
        if abs(mean) + abs(log_sd) < 1e-10:
            return student
    raise AssertionError(f"the fit has not settled: {student}")


def fit_forward(start: Gaussian = STUDENT_START) -> Gaussian:
    """The Gaussian of the least KL(teacher || student)."""
    teacher = np.exp(log_target(start, 1.0))
    return _settle(start, lambda student: _pull_to(teacher, student))


def fit_reverse(start: Gaussian = STUDENT_START) -> Gaussian:
    """The local minimum of KL(student || teacher) that is downhill from `start`."""
    return _settle(start, _reverse_pull)


def taid_path(ts: Array, start: Gaussian = STUDENT_START) -> list[Gaussian]:
    """Where the student settles at each t > 0, in this order, each time starting from the point before.

    Settled at t means: no pull to its own target `q^(1-t) p^t`. The pull is divided by t, which moves no settling point
    and makes small t as fast as large ones.
    """
    path: list[Gaussian] = []
    for t in ts:

        def pull(student: Gaussian, t: float = float(t)) -> Pull:
            mean, log_sd = _pull_to(np.exp(log_target(student, t)), student)
            return mean / t, log_sd / t

        start = _settle(start, pull)
        path.append(start)
    return path
