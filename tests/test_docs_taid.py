"""docs/taid.md: each of its derivations against numbers in float64, and its commands.

Gradients come from torch's autograd through the plain definitions, integrals from scipy; the target is the product's.
"""

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch
from docs_tiny import NOT_LINKED, ROOT, blocks, commands, run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill import taid
from distill.taid import TaidConfig, alpha_warning, initial_state, next_state

PAGE = (ROOT / "docs" / "taid.md").read_text(encoding="utf-8")
SEEDS = range(5)
VOCABULARY = 13


def _logits(seed: int, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits of one position, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(VOCABULARY, dtype=torch.float64, generator=generator) for _ in range(2))
    return student, teacher


def _target(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """p_t by the product."""
    return torch.softmax(student + taid.tilt(student, teacher, t), dim=-1)


def _kl(one: Tensor, other_logits: Tensor) -> Tensor:
    """KL(one || softmax(other_logits)), term by term."""
    return (one * (one.log() - torch.log_softmax(other_logits, -1))).sum()


def _gradient(loss_of_logits: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of_logits(leaf), leaf)
    return gradient


def _reverse_kl_gradient(student: Tensor, teacher: Tensor) -> Tensor:
    log_p = torch.log_softmax(teacher, -1)
    return _gradient(lambda z: (torch.softmax(z, -1) * (torch.log_softmax(z, -1) - log_p)).sum(), student)


def _moments(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, the gap d less its mean under q, and the variance of d under q."""
    q = torch.softmax(student, -1)
    gap = teacher - student
    gap = gap - (q * gap).sum()
    return q, gap, (q * gap**2).sum()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_target_is_the_normalised_product_of_powers_and_the_gradient_is_q_minus_it(seed: int, t: float) -> None:
    student, teacher = _logits(seed)
    q, p = torch.softmax(student, -1), torch.softmax(teacher, -1)
    product = q ** (1 - t) * p**t
    target = _target(student, teacher, t)
    torch.testing.assert_close(target, product / product.sum(), rtol=1e-12, atol=1e-15)
    for loss in (lambda z: -(target * torch.log_softmax(z, -1)).sum(), lambda z: _kl(target, z)):
        torch.testing.assert_close(_gradient(loss, student), q - target, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_at_t_1_the_gradient_is_forward_kls(seed: int) -> None:
    student, teacher = _logits(seed)
    p = torch.softmax(teacher, -1)
    wanted = _gradient(lambda z: _kl(p, z), student)
    found = torch.softmax(student, -1) - _target(student, teacher, 1.0)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_for_small_t_the_gradient_is_t_times_reverse_kls(seed: int) -> None:
    student, teacher = _logits(seed)
    q, gap, variance = _moments(student, teacher)
    reverse = _reverse_kl_gradient(student, teacher)
    torch.testing.assert_close(reverse, -q * gap, rtol=1e-10, atol=1e-14)
    second = -0.5 * q * (gap**2 - variance)
    size = float(reverse.abs().max())
    rests: list[float] = []
    for t in (1e-2, 1e-3, 1e-4):
        rest = q - _target(student, teacher, t) - t * reverse
        rests.append(float(rest.abs().max()))
        assert rests[-1] < 10 * t * t * size * float(gap.abs().max())
        assert float((rest - t * t * second).abs().max()) < 10 * t**3 * float((q * gap.abs() ** 3).max())
    assert rests[0] / rests[1] == pytest.approx(100, rel=0.2), "the rest is of second order"
    assert rests[1] / rests[2] == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_to_the_target_is_half_t_squared_times_the_variance(seed: int) -> None:
    student, teacher = _logits(seed)
    q, gap, variance = _moments(student, teacher)
    third = float((q * gap**3).sum())
    for t in (1e-2, 1e-3):
        kl = float(_kl(_target(student, teacher, t), student))
        assert kl == pytest.approx(t * t / 2 * float(variance), rel=20 * t)
        rest = kl - t * t / 2 * float(variance) - t**3 / 3 * third
        assert abs(rest) < t**4 * float((q * gap**4).sum()), "what is left is of fourth order"


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_to_the_target_is_the_integral_of_the_variance_and_only_rises(seed: int) -> None:
    student, teacher = _logits(seed)

    def slope(s: float) -> float:
        p_s, gap = _target(student, teacher, s), teacher - student
        return s * float((p_s * gap**2).sum() - (p_s * gap).sum() ** 2)

    kls = [float(_kl(_target(student, teacher, t), student)) for t in np.linspace(0, 1, 21)]
    assert kls == sorted(kls)
    assert kls[-1] == pytest.approx(scipy.integrate.quad(slope, 0, 1)[0], rel=1e-9)


def test_the_example_of_the_page_asks_for_2_hundredths_of_a_nat() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.zeros(50_000, dtype=torch.float64)
    teacher = 2.0 * torch.randn(50_000, dtype=torch.float64, generator=generator)
    assert float(_kl(_target(student, teacher, 0.1), student)) == pytest.approx(0.02, rel=0.02)


def test_the_linear_floor_overtakes_where_the_page_says() -> None:
    def lead(step: float) -> float:
        return 1 - (1 - 5e-4 * 0.5) ** step - step / 12_000

    crossing = scipy.optimize.root_scalar(lead, bracket=(6_000, 11_999)).root
    assert f"step {math.ceil(crossing):,} of 12,000" in PAGE


def test_the_limit_of_alpha_is_two_over_the_steps() -> None:
    for steps, leads in ((3_900, False), (4_100, True)):
        config = TaidConfig(alpha=5e-4)
        state = next_state(initial_state(config), 2.0, step=1, steps=steps, config=config)
        after = next_state(state, 2.0, step=2, steps=10**9, config=config)
        rise, floor_rise = after.t - state.t, (config.t_end - config.t_start) / steps
        assert (rise > floor_rise) is leads
        assert (alpha_warning(config, steps=steps) is None) is leads


@given(losses=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=30), beta=st.floats(0.0, 0.999))
def test_sigma_stays_below_what_the_page_says_and_falls_below_the_logarithm(losses: list[float], beta: float) -> None:
    config = TaidConfig(alpha=1e-9, beta=beta, t_start=0.0)
    state = initial_state(config)
    for step, loss in enumerate(losses, start=1):
        state = next_state(state, loss, step=step, steps=10**9, config=config)
        assert state.t_momentum < 1.0
    assert 1 / (1 + math.exp(-1)) == pytest.approx(0.731, abs=5e-4)
    falls = [(before - after) / before for before, after in itertools.pairwise(losses)]
    assert sum(falls) <= math.log(losses[0] / losses[-1]) + 1e-9


def test_a_loss_that_halves_moves_sigma_as_little_as_the_page_says() -> None:
    config, steps = TaidConfig(), 12_000
    state, momenta = initial_state(config), [0.0]
    for step in range(1, steps + 1):
        state = next_state(state, 4.0 * 0.5 ** (step / steps), step=step, steps=steps, config=config)
        momenta.append(state.t_momentum)
    assert float(np.mean(momenta)) == pytest.approx(6e-5, rel=0.06)
    assert float(np.mean([1 / (1 + math.exp(-one)) for one in momenta])) == pytest.approx(0.50001, abs=5e-6)


LABEL = 4


def _one_hot() -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(LABEL), VOCABULARY).double()


def _smoothed(epsilon: float) -> Tensor:
    return (1 - epsilon) * _one_hot() + epsilon / VOCABULARY


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("t", [1e-3, 0.5, 1.0])
def test_with_a_one_hot_label_every_reading_is_degenerate(seed: int, t: float) -> None:
    student, _ = _logits(seed)
    q, y = torch.softmax(student, -1), _one_hot()
    geometric = q ** (1 - t) * y**t
    torch.testing.assert_close(geometric / geometric.sum(), y, rtol=0, atol=0)

    mixture = (1 - t) * q + t * y
    found = _gradient(lambda z: -(mixture * torch.log_softmax(z, -1)).sum(), student)
    plain = _gradient(lambda z: torch.nn.functional.cross_entropy(z[None], torch.tensor([LABEL])), student)
    torch.testing.assert_close(found, t * plain, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found, t * (q - y), rtol=1e-10, atol=1e-14)

    rise = 3.0 * t
    raised = torch.softmax(student + rise * y, -1)
    share = q[LABEL] * math.expm1(rise) / (1 + q[LABEL] * math.expm1(rise))
    torch.testing.assert_close(q - raised, share * (q - y), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_smoothed_label_has_a_path(seed: int) -> None:
    student, _ = _logits(seed)
    q, y, epsilon, t = torch.softmax(student, -1), _one_hot(), 0.1, 0.4
    smoothed = _smoothed(epsilon)
    target = _target(student, smoothed.log(), t)
    product = q ** (1 - t) * smoothed**t
    torch.testing.assert_close(target, product / product.sum(), rtol=1e-12, atol=1e-15)

    others = [index for index in range(VOCABULARY) if index != LABEL]
    ratio = target[others] / target[others[0]]
    torch.testing.assert_close(ratio, (q[others] / q[others[0]]) ** (1 - t), rtol=1e-10, atol=1e-14)
    odds = (1 - epsilon + epsilon / VOCABULARY) / (epsilon / VOCABULARY)
    torch.testing.assert_close(
        target[LABEL] / target[others], (q[LABEL] / q[others]) ** (1 - t) * odds**t, rtol=1e-10, atol=1e-14
    )
    gradient, plain = q - target, q - y
    cosine = float(gradient @ plain / (gradient.norm() * plain.norm()))
    assert cosine < 1 - 1e-3, "no multiple of q - y"
    small = 1e-5
    torch.testing.assert_close(
        (q - _target(student, smoothed.log(), small)) / small,
        _reverse_kl_gradient(student, smoothed.log()),
        rtol=1e-2,
        atol=1e-4,
    )
    gaps = [float((_target(student, _smoothed(one).log(), t) - y).abs().max()) for one in (1e-3, 1e-9, 1e-30)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-9, "towards the one-hot case"


def test_the_settings_of_the_page_are_the_products_defaults() -> None:
    config = TaidConfig()
    assert (config.alpha, config.beta, config.t_start, config.t_end) == (5e-4, 0.99, 0.4, 1.0)
    assert "| alpha, beta | 5e-4, 0.99 |" in PAGE and "| t_start, t_end | 0.4, 1.0;" in PAGE


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for item in ROOT.iterdir():
        if item.name not in NOT_LINKED:
            (tmp_path / item.name).symlink_to(item)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    monkeypatch.chdir(tmp_path)
    kinds = {kind for kind, _ in blocks(PAGE)}
    assert kinds == {"math", "bash", "bash not run"}
    for kind, block in blocks(PAGE):
        if kind == "bash":
            for command in commands(block):
                run(command, tmp_path)
    made = {path.name for path in (tmp_path / "dist" / "figures").iterdir()}
    names = ("t-simulation", "t-closed-form", "modes", "measured")
    assert made == {f"{name}-{tongue}.{form}" for name in names for tongue in ("en", "ja") for form in ("png", "svg")}
    assert all(f"`{name}`" in PAGE for name in names)
