"""TAID: temporally adaptive interpolated distillation (arXiv 2501.16937), as pure functions.

The student is pulled towards an intermediate distribution `p_t = softmax((1 - t) * stop_grad(z_s) + t * z_T)`, and
the interpolation coefficient t rises from `t_start` to `t_end`, faster while the loss falls fast. The controller's
state is a value: it is passed in and returned, once per optimizer step, on training batches only, with the loss of
the whole step. Independent of trainers and devices. Legend: N tokens, V shared vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from common.errors import UserError, require_above, require_at_least, require_below, require_between

RELEASED_STEPS = 12_000
"""A run length for which the released alpha matters: t leads the linear ramp by 0.17 at half-way."""
_NO_LOSS = 1e-6
"""Below it a loss has no digits left for a relative change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaidConfig:
    """The controller's settings; defaults are those of SakanaAI/TAID@a062892 src/arguments.py."""

    alpha: float = 5e-4
    """Largest rise of t in one step, as a share of what is left to 1. Below 2/steps it never leads the linear floor."""
    beta: float = 0.99
    """Decay of the momentum on the relative change of the loss."""
    t_start: float = 0.4
    """Share of the teacher in the target at step 0."""
    t_end: float = 1.0
    """Share of the teacher in the target at the end of the ramp."""
    adaptive: bool = True
    """False: t follows the linear floor alone."""
    ramp_share: float = 1.0
    """Share of the run's steps after which the linear floor reaches t_end. The released code has 1."""
    controller_input: Literal["cross_entropy", "kl"] = "cross_entropy"
    """Loss value that drives the controller: the released code's cross-entropy, or the paper's KL."""
    released: bool = False
    """True: exactly the released code's rule. Its floor counts the optimizer steps before the present one."""

    def __post_init__(self) -> None:
        require_between(0, 1, t_start=self.t_start, t_end=self.t_end, beta=self.beta, ramp_share=self.ramp_share)
        require_at_least(0, alpha=self.alpha)
        require_at_least(self.t_start, t_end=self.t_end)
        require_above(0, ramp_share=self.ramp_share)
        require_below(1, beta=self.beta)
        if self.released and (self.ramp_share != 1.0 or self.controller_input != "cross_entropy"):
            wanted = "the released rule with ramp_share 1 and controller_input cross_entropy"
            got = f"ramp_share {self.ramp_share:g}, controller_input {self.controller_input}"
            raise UserError("contradiction", wanted=wanted, got=got, next_step="leave both or `released` out")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaidState:
    """What the controller remembers between optimizer steps."""

    t: float
    """Interpolation coefficient in use, 0 to 1; never falls."""
    previous_loss: float | None = None
    """Loss of the step before; None before the first."""
    t_momentum: float = 0.0
    """Moving average of the relative change of the loss."""


def initial_state(config: TaidConfig) -> TaidState:
    """The state before the first optimizer step."""
    return TaidState(t=config.t_start)


def linear_floor(step: int, steps: int, config: TaidConfig) -> float:
    """Linear t after `step` of `steps` optimizer steps, `t_start` to `t_end` over the ramp."""
    progress = min(1.0, step / max(1.0, steps * config.ramp_share))
    return config.t_start + (config.t_end - config.t_start) * progress


def next_state(state: TaidState, loss: float, *, step: int, steps: int, config: TaidConfig) -> TaidState:
    """The state after one optimizer step (SakanaAI/TAID@a062892 src/distil_losses/taid.py, `update_t`).

    `loss` is the step's, reduced over all micro-batches and ranks; `step` counts the optimizer steps done, this one
    included. The first call only stores the loss; t never falls and never passes t_end.
    """
    if state.previous_loss is None:
        return TaidState(t=state.t, previous_loss=loss, t_momentum=state.t_momentum)
    floor = linear_floor(step - 1 if config.released else step, steps, config)
    if not config.adaptive:
        return TaidState(t=max(state.t, floor), previous_loss=loss, t_momentum=state.t_momentum)
    if state.previous_loss < _NO_LOSS and not config.released:
        # A KL at t = 0 is 0 but for rounding: relative to it every change is huge, and the momentum would keep it.
        relative_fall = 0.0
    else:
        relative_fall = (state.previous_loss - loss) / (state.previous_loss + 1e-15)
    t_momentum = config.beta * state.t_momentum + (1.0 - config.beta) * relative_fall
    sigmoid = 1.0 / (1.0 + math.exp(-t_momentum)) if t_momentum > -700.0 else 0.0
    rise = config.alpha * sigmoid * (1.0 - state.t)
    t = min(config.t_end, max(floor, state.t + rise))
    return TaidState(t=t, previous_loss=loss, t_momentum=t_momentum)


def alpha_for(*, steps: int, ramp_share: float = 1.0) -> float:
    """An alpha that gives t in a run of any length the shape of the released 5e-4 over 12,000 steps; at least 5e-4.

    The closed form `1 - t_n = (1 - t_0)(1 - alpha/2)^n` depends on `alpha * n` alone while alpha is small, so the
    product is kept.
    """
    released = TaidConfig().alpha
    return max(released, released * RELEASED_STEPS / max(1.0, steps * ramp_share))


def alpha_warning(config: TaidConfig, *, steps: int) -> str | None:
    """A warning if alpha has no effect in a run of this length, else None.

    With the sigmoid near one half the adaptive term rises by alpha/2 of what is left to 1, the linear floor by 1/steps
    of the whole ramp: the first leads only if `alpha > 2 / ramp steps`, for a ramp that ends at 1.
    """
    ramp_steps = steps * config.ramp_share
    if not config.adaptive or ramp_steps <= 0 or config.t_start == 1.0:
        return None
    needed = 2.0 / ramp_steps * (config.t_end - config.t_start) / (1.0 - config.t_start)
    if config.alpha >= needed:
        return None
    return (
        f"TAID's alpha {config.alpha:g} is below {needed:.3g}, which a ramp of {ramp_steps:.0f} steps needs: "
        "t follows the linear ramp and the adaptive term has no effect in a run of this length"
    )


def tilt(student_NV: Tensor, teacher_NV: Tensor, t: float) -> Tensor:
    """What TAID's target adds to the student's logits, `t (z_T - z_s)` [N, V].

    The intermediate distribution is `softmax((1 - t) z_s + t z_T)` (eq. 3), a constant for the gradient. Mixing
    log-probabilities instead gives the same one: they differ from logits by a constant of each row.
    """
    return (teacher_NV - student_NV.detach()).mul_(t)
