"""CTKD's learnt temperature (arXiv 2211.16231), as pure functions.

The student lowers the loss, and the temperature T of both sides is moved to raise it: one parameter theta with
`T = 1 + (max - 1) * sigmoid(theta)` climbs the loss's gradient, scaled by a reversal strength that rises from 0 to 1
over the first part of the run, easy to hard. That is what a gradient-reversal layer does under a shared optimizer. The
state is a value: passed in and returned, once per optimizer step. This module knows no trainer and no device.
"""

import math
from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class CtkdConfig:
    """The learnt temperature's settings; defaults but the learning rate are those of SakanaAI/TAID@a062892."""

    max_temperature: float = 21.0
    """Highest temperature; the lowest is 1."""
    theta_start: float = 1.0
    """theta before the first step: T = 15.6 with the default maximum."""
    learning_rate: float = 0.05
    """Step of theta along the loss's gradient. The released code never moves theta; this is the CTKD article's rate."""
    reversal_share: float = 0.5
    """Share of the run's steps over which the reversal strength rises from 0 to 1, as half a cosine."""

    def __post_init__(self) -> None:
        if self.max_temperature <= 1.0 or self.learning_rate < 0.0 or not 0.0 < self.reversal_share <= 1.0:
            raise UserError(
                wanted="max_temperature above 1, learning_rate of at least 0, 0 < reversal_share <= 1",
                got=f"{self.max_temperature}, {self.learning_rate}, {self.reversal_share}",
                next_step="mend the CTKD settings",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CtkdState:
    """What is learnt between optimizer steps."""

    theta: float


def initial_state(config: CtkdConfig) -> CtkdState:
    """The state before the first optimizer step."""
    return CtkdState(theta=config.theta_start)


def temperature(state: CtkdState, config: CtkdConfig) -> float:
    """T of a state, between 1 and the maximum."""
    return 1.0 + (config.max_temperature - 1.0) * _sigmoid(state.theta)


def reversal_strength(step: int, steps: int, config: CtkdConfig) -> float:
    """0 at the start, 1 after `reversal_share` of the steps, half a cosine between."""
    progress = min(1.0, step / max(1.0, steps * config.reversal_share))
    return 0.5 * (1.0 - math.cos(math.pi * progress))


def next_state(
    state: CtkdState, temperature_gradient: float, *, step: int, steps: int, config: CtkdConfig
) -> CtkdState:
    """The state after one optimizer step.

    Args:
        state: the state that the step was computed with.
        temperature_gradient: derivative of the step's loss with respect to T, reduced over micro-batches and ranks.
        step: optimizer steps done, this one included.
        steps: optimizer steps of the whole run.
    """
    sigmoid = _sigmoid(state.theta)
    slope = temperature_gradient * (config.max_temperature - 1.0) * sigmoid * (1.0 - sigmoid)
    return CtkdState(theta=state.theta + config.learning_rate * reversal_strength(step, steps, config) * slope)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0
