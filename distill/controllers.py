"""What moves the keyword arguments of an objective between optimizer steps: TAID's t, CTKD's temperature.

A controller holds no state. The state is a value that the loop passes in, saves with the checkpoint and gets back once
per optimizer step, on training batches only, from means over the whole step: all micro-batches, all processes. TAID's
rule is in `distill.taid`; CTKD's is here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from common.errors import require_above, require_at_least, require_between
from distill import taid
from distill.methods import DISTILLATION_LOSS, Method
from distill.taid import TaidConfig, TaidState


@dataclass(frozen=True, kw_only=True, slots=True)
class CtkdConfig:
    """The settings of CTKD's learnt temperature; defaults but the learning rate are those of SakanaAI/TAID@a062892."""

    max_temperature: float = 21.0
    """Highest temperature; the lowest is 1."""
    theta_start: float = 1.0
    """theta before the first step: T = 15.6 with the default maximum."""
    learning_rate: float = 0.05
    """Step of theta along the loss's gradient. The released code never moves theta; this is the CTKD article's rate."""
    reversal_share: float = 0.5
    """Share of the run's steps over which the reversal strength rises from 0 to 1, as half a cosine."""

    def __post_init__(self) -> None:
        require_above(1, max_temperature=self.max_temperature)
        require_at_least(0, learning_rate=self.learning_rate)
        require_above(0, reversal_share=self.reversal_share)
        require_between(0, 1, reversal_share=self.reversal_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class CtkdState:
    """What CTKD learns between optimizer steps."""

    theta: float


State = TaidState | CtkdState | None


def temperature(state: CtkdState, config: CtkdConfig) -> float:
    """CTKD's temperature (arXiv 2211.16231), `T = 1 + (max - 1) * sigmoid(theta)`."""
    return 1.0 + (config.max_temperature - 1.0) * _sigmoid(state.theta)


def reversal_strength(step: int, steps: int, config: CtkdConfig) -> float:
    """0 at the start, 1 after `reversal_share` of the steps, half a cosine between."""
    progress = min(1.0, step / max(1.0, steps * config.reversal_share))
    return 0.5 * (1.0 - math.cos(math.pi * progress))


def next_ctkd_state(
    state: CtkdState, temperature_gradient: float, *, step: int, steps: int, config: CtkdConfig
) -> CtkdState:
    """The state after one optimizer step: the student lowers the loss, and theta climbs it.

    The step is scaled by a reversal strength that rises from 0 to 1, easy to hard: what a gradient-reversal layer does
    under a shared optimizer. `temperature_gradient` is the derivative of the step's loss with respect to T, over all
    micro-batches and processes. `step` counts the optimizer steps done, this one included.
    """
    sigmoid = _sigmoid(state.theta)
    slope = temperature_gradient * (config.max_temperature - 1.0) * sigmoid * (1.0 - sigmoid)
    return CtkdState(theta=state.theta + config.learning_rate * reversal_strength(step, steps, config) * slope)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0


class Controller:
    """The controller of a method whose objective keeps its arguments, and the interface of all others."""

    def initial(self) -> State:
        """The state before the first optimizer step."""
        return None

    def load_state(self, values: Mapping[str, Any]) -> State:
        """A state from its saved fields, as `dataclasses.asdict` gives them."""
        initial = self.initial()
        assert initial is not None, "a saved state of a method that has none"
        return replace(initial, **values)

    def kwargs(self, state: Any) -> dict[str, float]:
        """Keyword arguments for the objective of a step; the log shows them."""
        return {}

    def metrics(self, state: Any) -> dict[str, float]:
        """Further values of the state after a step, for the log."""
        return {}

    def update(self, state: Any, means: Mapping[str, float], *, step: int, steps: int) -> State:
        """The state after one optimizer step with these means."""
        return None


class _TaidController(Controller):
    def __init__(self, config: TaidConfig) -> None:
        self._config = config

    def initial(self) -> State:
        return taid.initial_state(self._config)

    def kwargs(self, state: TaidState) -> dict[str, float]:
        return {"t": state.t}

    def metrics(self, state: TaidState) -> dict[str, float]:
        return {"t_momentum": state.t_momentum}

    def update(self, state: TaidState, means: Mapping[str, float], *, step: int, steps: int) -> State:
        own = means.get(DISTILLATION_LOSS, means["loss"])
        loss = own if self._config.controller_input == "cross_entropy" else means["kl"]
        return taid.next_state(state, loss, step=step, steps=steps, config=self._config)


class _CtkdController(Controller):
    def __init__(self, config: CtkdConfig, lm_weight: float) -> None:
        self._config, self._share = config, 1.0 - lm_weight

    def initial(self) -> State:
        return CtkdState(theta=self._config.theta_start)

    def kwargs(self, state: CtkdState) -> dict[str, float]:
        return {"temperature": temperature(state, self._config)}

    def update(self, state: CtkdState, means: Mapping[str, float], *, step: int, steps: int) -> State:
        # The objective is only a share of the loss that theta climbs.
        gradient = self._share * means["temperature_gradient"]
        return next_ctkd_state(state, gradient, step=step, steps=steps, config=self._config)


def controller_of(
    method: Method, taid_config: TaidConfig, ctkd_config: CtkdConfig, *, lm_weight: float = 0.0
) -> Controller:
    """The controller of a method, for a loss in which language modelling has the share `lm_weight`."""
    if method.controller == "taid":
        return _TaidController(taid_config)
    return _CtkdController(ctkd_config, lm_weight) if method.controller == "ctkd" else Controller()
