"""What gives an objective a new argument in each optimizer step: TAID its t, CTKD its temperature, others nothing.

A driver holds no state. The state is a value that the loop passes in, saves with the checkpoint and gets back once per
optimizer step, on training batches only, from means over the whole step: all micro-batches, all ranks. The rules stand
in `distill.taid` and `distill.ctkd`; this module only lets the loop speak to both alike.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from distill import ctkd, taid
from distill.ctkd import CtkdConfig, CtkdState
from distill.methods import DISTILLATION_LOSS, Method
from distill.taid import TaidConfig, TaidState

State = TaidState | CtkdState | None


class Driver(Protocol):
    """The states of one kind."""

    def initial(self) -> State:
        """Before the first optimizer step."""
        ...

    def restored(self, values: Mapping[str, Any]) -> State:
        """The inverse of `dataclasses.asdict`."""
        ...

    def arguments(self, state: Any) -> dict[str, float]:
        """What the objective of a step is called with; the log shows it too."""
        ...

    def shown(self, state: Any) -> dict[str, float]:
        """Further values of the state after a step, for the log."""
        ...

    def after(self, state: Any, means: Mapping[str, float], *, step: int, steps: int) -> State:
        """The state after one optimizer step with these means."""
        ...


class _Nothing:
    def initial(self) -> State:
        return None

    def restored(self, values: Mapping[str, Any]) -> State:
        raise AssertionError("a state was saved that this method does not have")

    def arguments(self, state: Any) -> dict[str, float]:
        return {}

    def shown(self, state: Any) -> dict[str, float]:
        return {}

    def after(self, state: Any, means: Mapping[str, float], *, step: int, steps: int) -> State:
        return None


class _Taid:
    def __init__(self, config: TaidConfig) -> None:
        self._config = config

    def initial(self) -> State:
        return taid.initial_state(self._config)

    def restored(self, values: Mapping[str, Any]) -> State:
        return TaidState(**values)

    def arguments(self, state: TaidState) -> dict[str, float]:
        return {"t": state.t}

    def shown(self, state: TaidState) -> dict[str, float]:
        return {"t_momentum": state.t_momentum}

    def after(self, state: TaidState, means: Mapping[str, float], *, step: int, steps: int) -> State:
        own = means.get(DISTILLATION_LOSS, means["loss"])
        watched = own if self._config.watches == "cross_entropy" else means["kl"]
        return taid.next_state(state, watched, step=step, steps=steps, config=self._config)


class _Ctkd:
    def __init__(self, config: CtkdConfig, lm_weight: float) -> None:
        self._config, self._share = config, 1.0 - lm_weight

    def initial(self) -> State:
        return ctkd.initial_state(self._config)

    def restored(self, values: Mapping[str, Any]) -> State:
        return CtkdState(**values)

    def arguments(self, state: CtkdState) -> dict[str, float]:
        return {"temperature": ctkd.temperature(state, self._config)}

    def shown(self, state: CtkdState) -> dict[str, float]:
        return {}

    def after(self, state: CtkdState, means: Mapping[str, float], *, step: int, steps: int) -> State:
        # Of the loss as it is, in which the objective has only its share.
        gradient = self._share * means["temperature_gradient"]
        return ctkd.next_state(state, gradient, step=step, steps=steps, config=self._config)


def driver_of(method: Method, taid_config: TaidConfig, ctkd_config: CtkdConfig, *, lm_weight: float = 0.0) -> Driver:
    """The driver that a method names, for a loss in which language modelling has the share `lm_weight`."""
    if method.driver == "taid":
        return _Taid(taid_config)
    return _Ctkd(ctkd_config, lm_weight) if method.driver == "ctkd" else _Nothing()


def saved(state: State) -> dict[str, Any] | None:
    """A state as JSON, None where there is none."""
    return None if state is None else asdict(state)
