"""CTKD's temperature against torch's autograd with the gradient reversed in front of the temperature."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from errors_tiny import refuses

from distill.controllers import (
    CtkdConfig,
    CtkdState,
    controller_of,
    next_ctkd_state,
    reversal_strength,
    temperature,
)
from distill.methods import METHODS
from distill.objectives import ctkd
from distill.taid import TaidConfig


class _Reverse(torch.autograd.Function):
    """The gradient-reversal layer of the article: identity, and minus the gradient times a strength."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, strength: float) -> torch.Tensor:  # type: ignore[override]
        ctx.strength = strength
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return -ctx.strength * gradients[0], None


def test_theta_moves_as_under_a_gradient_reversal_layer_and_a_shared_optimizer() -> None:
    generator = torch.Generator().manual_seed(1)
    config, steps = CtkdConfig(learning_rate=0.3, reversal_share=0.5), 20
    state = CtkdState(theta=config.theta_start)
    theta = torch.tensor(config.theta_start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=config.learning_rate)
    for step in range(1, steps + 1):
        student, teacher = (3 * torch.randn(6, 20, dtype=torch.float64, generator=generator) for _ in range(2))
        value = _Reverse.apply(1 + 20 * torch.sigmoid(theta), reversal_strength(step, steps, config))
        assert isinstance(value, torch.Tensor)
        p, q = torch.log_softmax(teacher / value, -1), torch.log_softmax(student / value, -1)
        loss = (value**2 * (p.exp() * (p - q)).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found, _, extras = ctkd(student, teacher, torch.zeros(6).long(), temperature=temperature(state, config))
        assert float(found.mean()) == pytest.approx(float(loss.detach()), rel=1e-9)
        slope = float(extras["temperature_gradient"].mean())
        state = next_ctkd_state(state, slope, step=step, steps=steps, config=config)
        assert state.theta == pytest.approx(float(theta.detach()), rel=1e-8)
    assert state.theta != config.theta_start


@pytest.mark.parametrize("lm_weight", [0.0, 0.5, 1.0])
def test_theta_follows_the_loss_as_it_is_with_language_modelling_mixed_in(lm_weight: float) -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = (2 * torch.randn(5, 20, dtype=torch.float64, generator=generator) for _ in range(2))
    targets, chosen, config = torch.arange(5), METHODS["ctkd"], CtkdConfig(learning_rate=1.0, reversal_share=0.5)

    def loss(theta: float) -> tuple[float, dict[str, float]]:
        given = {"temperature": temperature(replace(CtkdState(theta=config.theta_start), theta=theta), config)}
        value, _, extras = chosen.objective(given, lm_weight=lm_weight)(student, teacher, targets)
        return float(value.mean()), {name: float(extra.mean()) for name, extra in extras.items()}

    start, step = CtkdState(theta=config.theta_start), 1e-5
    slope = (loss(start.theta + step)[0] - loss(start.theta - step)[0]) / (2 * step)
    controller = controller_of(chosen, TaidConfig(), config, lm_weight=lm_weight)
    after = controller.update(start, loss(start.theta)[1], step=50, steps=100)
    assert isinstance(after, CtkdState)
    assert after.theta - start.theta == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_the_reversal_grows_from_nothing_to_all() -> None:
    config = CtkdConfig(reversal_share=0.5)
    strengths = [reversal_strength(step, 100, config) for step in range(101)]
    assert strengths[0] == 0.0 and strengths[25] == pytest.approx(0.5) and strengths[50:] == [1.0] * 51
    assert strengths == sorted(strengths)


def test_the_temperature_stays_in_its_range() -> None:
    config = CtkdConfig(max_temperature=5.0)
    for theta in (-1e6, -3.0, 0.0, 800.0):
        state = CtkdState(theta=theta)
        assert 1.0 <= temperature(state, config) <= 5.0


@pytest.mark.parametrize("settings", [{"max_temperature": 1.0}, {"learning_rate": -0.1}, {"reversal_share": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with refuses("out-of-range", wanted=next(iter(settings))):
        CtkdConfig(**settings)
