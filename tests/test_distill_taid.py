"""TAID's controller and target against closed forms and hand-computed steps."""

import math
import random

import pytest
import torch
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st

from distill.taid import (
    TaidConfig,
    TaidState,
    alpha_for,
    alpha_warning,
    initial_state,
    linear_floor,
    next_state,
    tilt,
)


def test_the_first_steps_follow_the_released_update_rule() -> None:
    config = TaidConfig(alpha=0.1, beta=0.9, t_start=0.4, t_end=1.0)
    state = initial_state(config)
    assert state == TaidState(t=0.4)
    state = next_state(state, 5.0, step=1, steps=1000, config=config)
    assert state.t == 0.4 and state.previous_loss == 5.0, "the first step only stores the loss"

    state = next_state(state, 4.0, step=2, steps=1000, config=config)
    momentum = 0.1 * (5.0 - 4.0) / 5.0
    t = 0.4 + 0.1 / (1 + math.exp(-momentum)) * (1 - 0.4)
    assert state.t_momentum == pytest.approx(momentum, rel=1e-12)
    assert state.t == pytest.approx(t, rel=1e-12)

    state = next_state(state, 4.5, step=3, steps=1000, config=config)
    momentum = 0.9 * momentum + 0.1 * (4.0 - 4.5) / 4.0
    t = t + 0.1 / (1 + math.exp(-momentum)) * (1 - t)
    assert state.t == pytest.approx(t, rel=1e-12)


def test_the_released_rule_step_by_step() -> None:
    """The released `update_t` written out again, with its own count of steps, over a noisy falling loss."""
    generator = random.Random(0)
    steps, alpha, beta, start = 5_000, 5e-4, 0.99, 0.4
    losses = [4.0 * math.exp(-step / 1_500) + 1.0 + generator.gauss(0.0, 0.2) for step in range(steps)]
    config = TaidConfig(released=True)
    state = initial_state(config)
    t, previous, momentum = start, math.inf, 0.0
    for global_step, loss in enumerate(losses):
        state = next_state(state, loss, step=global_step + 1, steps=steps, config=config)
        if previous == math.inf:
            previous = loss
        else:
            change = (previous - loss) / (previous + 1e-15)
            momentum = beta * momentum + (1 - beta) * change
            rise = alpha * (1 / (1 + math.exp(-momentum))) * (1 - t)
            t = min(1.0, max(start + (1.0 - start) * global_step / steps, t + rise))
            previous = loss
        assert state.t == pytest.approx(t, rel=1e-12) and state.t_momentum == pytest.approx(momentum, abs=1e-15)
    assert 0.99 < t < 1.0


def test_the_released_rule_takes_no_settings_of_ours() -> None:
    for settings in ({"ramp_share": 0.5}, {"controller_input": "kl"}):
        with refuses("contradiction", wanted="the released rule", got=str(next(iter(settings)))):
            TaidConfig(released=True, **settings)  # pyright: ignore[reportArgumentType]


def test_with_a_constant_loss_t_follows_the_closed_form() -> None:
    config = TaidConfig(alpha=5e-3, t_start=0.0)
    state = initial_state(config)
    for step in range(1, 101):
        state = next_state(state, 2.0, step=step, steps=10**9, config=config)
    assert state.t == pytest.approx(1 - (1 - 5e-3 * 0.5) ** 99, rel=1e-9)


def test_the_linear_variant_is_the_floor_and_the_ramp_may_end_early() -> None:
    config = TaidConfig(t_start=0.4, adaptive=False, ramp_share=0.5)
    state = initial_state(config)
    for step in range(1, 101):
        state = next_state(state, 3.0, step=step, steps=100, config=config)
        if step > 1:
            assert state.t == pytest.approx(min(1.0, 0.4 + 0.6 * step / 50))
    assert linear_floor(50, 100, config) == 1.0


@given(losses=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=40), alpha=st.floats(0, 0.5))
def test_t_never_falls_nor_passes_its_end(losses: list[float], alpha: float) -> None:
    config = TaidConfig(alpha=alpha, t_start=0.2, t_end=0.9)
    state = initial_state(config)
    for step, loss in enumerate(losses, start=1):
        following = next_state(state, loss, step=step, steps=len(losses), config=config)
        assert state.t <= following.t <= 0.9
        state = following
    assert state.t == pytest.approx(0.9)


def _half_way(steps: int, alpha: float) -> float:
    config = TaidConfig(alpha=alpha)
    state = initial_state(config)
    for step in range(1, steps // 2 + 1):
        state = next_state(state, 2.0, step=step, steps=steps, config=config)
    return state.t


@pytest.mark.parametrize("steps", [200, 1000, 5000])
def test_alpha_for_a_shorter_run_shapes_t_alike(steps: int) -> None:
    published = _half_way(12_000, 5e-4)
    assert published == pytest.approx(0.87, abs=0.01)
    assert _half_way(steps, alpha_for(steps=steps)) == pytest.approx(published, abs=0.005)
    assert alpha_warning(TaidConfig(alpha=alpha_for(steps=steps)), steps=steps) is None
    assert alpha_for(steps=100_000) == 5e-4


def test_alpha_too_small_for_the_run_is_said() -> None:
    assert alpha_warning(TaidConfig(alpha=5e-4), steps=300) is not None
    assert alpha_warning(TaidConfig(alpha=5e-4), steps=4000) is None
    assert alpha_warning(TaidConfig(alpha=5e-4, adaptive=False), steps=300) is None


def test_a_ramp_that_ends_early_needs_less() -> None:
    config = TaidConfig(alpha=0.0015, t_start=0.4, t_end=0.5)
    assert alpha_warning(config, steps=1000) is None
    state = initial_state(config)
    led = 0
    for step in range(1, 201):
        state = next_state(state, 2.0, step=step, steps=1000, config=config)
        led += state.t > linear_floor(step, 1000, config)
    assert led > 190
    assert alpha_warning(TaidConfig(alpha=1e-4, t_start=0.4, t_end=0.5), steps=1000) is not None


def test_a_kl_of_nothing_does_not_poison_the_momentum() -> None:
    """At t = 0 the target is the student, and the first KL is a rounding."""
    config = TaidConfig(alpha=0.02, t_start=0.0, controller_input="kl")
    state = initial_state(config)
    for step, loss in enumerate([0.0, -1e-9, 7e-4, 2e-3, 2e-3], start=1):
        state = next_state(state, loss, step=step, steps=1000, config=config)
    assert abs(state.t_momentum) < 1.0 and state.t > linear_floor(5, 1000, config)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": math.nan},
        {"t_start": 0.9, "t_end": 0.5},
        {"t_start": -0.1},
        {"t_end": 1.1},
        {"alpha": -1.0},
        {"beta": 1.0},
        {"ramp_share": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with refuses("out-of-range"):
        TaidConfig(**settings)  # pyright: ignore[reportArgumentType]


def test_the_target_is_the_normalised_geometric_mean() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 11, dtype=torch.float64), torch.randn(5, 11, dtype=torch.float64)
    t = 0.3
    mean = torch.softmax(student, -1) ** (1 - t) * torch.softmax(teacher, -1) ** t
    assert torch.allclose(
        torch.softmax(student + tilt(student, teacher, t), -1), mean / mean.sum(-1, keepdim=True), atol=1e-14
    )
    assert torch.allclose(torch.softmax(student + tilt(student, teacher, 1.0), -1), torch.softmax(teacher, -1))
    assert torch.allclose(torch.softmax(student + tilt(student, teacher, 0.0), -1), torch.softmax(student, -1))
