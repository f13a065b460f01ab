"""Every objective against the formula of its article in float64, and what joins one method to another."""

import pytest
import torch
from errors_tiny import refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_references import REFERENCES, VARIED, T, arguments, ctkd
from torch import Tensor

from common.errors import Code
from distill import objectives
from distill.methods import METHODS, defaults, method, parse_settings, require_settings


def logits(
    seed: int, *, tokens: int = 12, vocabulary: int = 41, scales: tuple[float, ...] = (1.0,)
) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 logits of both sides and targets; the rows take the scales in turn."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([scales[row % len(scales)] for row in range(tokens)])[:, None]
    student, teacher = (torch.randn(tokens, vocabulary, generator=generator) * scale for _ in range(2))
    return student, teacher, torch.randint(0, vocabulary, (tokens,), generator=generator)


def check(
    name: str,
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    own: dict[str, float],
    *,
    driven: dict[str, float] | None = None,
    floor: float = 0.0,
) -> None:
    """Value and gradient within 1e-5 of the reference's largest entry, or of `floor`."""
    driven = arguments(name) if driven is None else driven
    given = defaults(name) | own | driven
    chosen = METHODS[name]
    before = student.clone(), teacher.clone()
    objective = chosen.objective(driven, tuple(sorted(own.items())))
    loss, gradient, _ = objective(student, teacher if chosen.needs_teacher else None, targets)
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1]), "inputs stay as they are"
    leaf = student.double().requires_grad_()
    expected = REFERENCES[name](leaf, teacher.double(), targets, given)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    expected = expected.detach()
    assert loss.dtype == gradient.dtype == torch.float32
    assert (loss - expected).abs().max() <= 1e-5 * max(float(expected.abs().max()), floor)
    assert (gradient - expected_gradient).abs().max() <= 1e-5 * max(float(expected_gradient.abs().max()), floor)


def test_every_method_has_a_reference() -> None:
    assert set(REFERENCES) == set(METHODS)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("scales", [(1.0,), (5.0,), (0.1, 1.0, 5.0, 60.0, 500.0)])
def test_value_and_gradient_equal_the_float64_reference(name: str, scales: tuple[float, ...]) -> None:
    own: dict[str, float] = {"k": 5.0} if name == "decoupled_top_k" else {}
    check(name, *logits(7, scales=scales), own)
    if name in VARIED:
        check(name, *logits(8, scales=scales), VARIED[name])


def real_rows(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Four rows over Qwen's vocabulary."""
    generator = torch.Generator().manual_seed(1)
    student, other = (torch.randn(4, 151_665, generator=generator) for _ in range(2))
    targets = torch.tensor([0, 1, 5, 77])
    if kind == "independent":
        return 2 * student, 2 * other, targets
    if kind == "almost equal":
        return 0.5 * student, 0.5 * student + 0.1 * other, targets
    student = 3 * student + 20.0
    student[:, :3] += 15.0  # three likely ids, as in text
    return student, student + 0.3 + 0.5 * other, targets


@pytest.mark.parametrize("kind", ["independent", "almost equal", "peaked"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_bar_holds_over_the_real_vocabulary(name: str, kind: str) -> None:
    """Sums of 150,000 terms, differences of near-equal softmaxes: there float32 loses digits that it need not lose."""
    own: list[dict[str, float]] = [arguments(name)]
    if METHODS[name].controller == "taid":
        own = [{"t": 0.001}, {"t": 0.1}, {"t": 1.0}]
    for driven in own:
        check(name, *real_rows(kind), {}, driven=driven)


@pytest.mark.parametrize("name", ["taid", "taid_labels"])
def test_at_t_0_the_target_is_the_student(name: str) -> None:
    student, teacher, targets = real_rows("independent")
    _, gradient, extras = METHODS[name].objective({"t": 0.0})(student, teacher, targets)
    assert not gradient.any() and extras["kl"].abs().max() <= 1e-6


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 10_000),
    tokens=st.integers(1, 9),
    vocabulary=st.integers(40, 700),
    scale=st.sampled_from([0.1, 0.3, 2.0, 30.0, 300.0]),
)
def test_references_hold_for_any_shape(name: str, seed: int, tokens: int, vocabulary: int, scale: float) -> None:
    """A batch of nothing but near-equal or saturated rows: there float32 itself ends at 1e-7 of a probability of 1."""
    check(name, *logits(seed, tokens=tokens, vocabulary=vocabulary, scales=(scale,)), {}, floor=0.01)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(METHODS)), seed=st.integers(0, 10_000), shift=st.floats(-50, 50))
def test_a_constant_on_a_row_changes_nothing_and_gradients_sum_to_zero(name: str, seed: int, shift: float) -> None:
    student, teacher, targets = (part.double() if part.is_floating_point() else part for part in logits(seed))
    objective = METHODS[name].objective(arguments(name))
    teachers = (teacher, teacher - shift) if METHODS[name].needs_teacher else (None, None)
    loss, gradient, _ = objective(student, teachers[0], targets)
    shifted, _, _ = objective(student + shift, teachers[1], targets)
    assert torch.allclose(loss, shifted, rtol=1e-9, atol=1e-10)
    assert torch.allclose(gradient.sum(-1), torch.zeros(len(gradient)).double(), atol=1e-10)


@pytest.mark.parametrize("name", sorted(name for name, chosen in METHODS.items() if chosen.needs_teacher))
def test_a_student_that_equals_its_teacher_feels_nothing(name: str) -> None:
    _, teacher, targets = logits(3)
    loss, gradient, extras = METHODS[name].objective(arguments(name))(teacher.clone(), teacher, targets)
    assert gradient.abs().max() <= 1e-6
    assert extras.get("kl", loss).abs().max() <= 1e-6


def test_limits_join_the_methods() -> None:
    student, teacher, targets = logits(5)
    forward, forward_gradient, _ = objectives.forward_kl(student, teacher, targets)
    reverse, reverse_gradient, _ = objectives.reverse_kl(student, teacher, targets)
    for loss, gradient, expected, expected_gradient in (
        (*objectives.skew_forward_kl(student, teacher, targets, skew=0.0)[:2], forward, forward_gradient),
        (*objectives.skew_reverse_kl(student, teacher, targets, skew=0.0)[:2], reverse, reverse_gradient),
        (*objectives.ctkd(student, teacher, targets, temperature=1.0)[:2], forward, forward_gradient),
    ):
        assert torch.allclose(loss, expected, rtol=1e-5) and torch.allclose(gradient, expected_gradient, atol=1e-6)
    _, gradient, extras = objectives.taid(student, teacher, targets, t=1.0)
    assert torch.allclose(extras["kl"], forward, rtol=1e-5) and torch.allclose(gradient, forward_gradient, atol=1e-6)
    assert objectives.taid(student, teacher, targets, t=0.0)[1].abs().max() < 1e-6
    # DKD with the weights of its decomposition is the forward KL (arXiv 2203.08679, eq. 7).
    p_target = torch.softmax(teacher, -1).gather(1, targets[:, None]).squeeze(1)
    parts = objectives.decoupled_kd(student, teacher, targets)[2]
    assert torch.allclose(parts["target_kl"] + (1 - p_target) * parts["others_kl"], forward, rtol=1e-4)
    # With all but one id kept, the top-k loss is the forward KL too.
    whole = objectives.decoupled_top_k(student, teacher, targets, k=student.size(1) - 1)
    assert torch.allclose(whole[0], forward, rtol=1e-4) and torch.allclose(whole[1], forward_gradient, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 15.6])
def test_ctkd_reports_the_derivative_with_respect_to_its_temperature(temperature: float) -> None:
    student, teacher, targets = logits(11, scales=(3.0,))
    found = objectives.ctkd(student, teacher, targets, temperature=temperature)[2]["temperature_gradient"]
    leaf = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    values = ctkd(student.double(), teacher.double(), targets, {"temperature": leaf})
    expected = torch.stack([torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in values])
    assert (found - expected).abs().max() <= 1e-5 * max(float(expected.abs().max()), float(values.abs().max()))


def test_a_temperature_softens_both_sides_and_keeps_the_gradients_size() -> None:
    student, teacher, targets = logits(13)
    for name in ("forward_kl", "reverse_kl", "taid"):
        loss, gradient, _ = METHODS[name].objective(arguments(name), temperature=2.0)(student, teacher, targets)
        leaf = student.double().requires_grad_()
        expected = 4.0 * REFERENCES[name](leaf / 2.0, teacher.double() / 2.0, targets, arguments(name))
        (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
        assert torch.allclose(loss.double(), expected, rtol=1e-5)
        assert torch.allclose(gradient.double(), expected_gradient, atol=1e-6)


def test_the_language_modelling_loss_is_mixed_in_by_its_share() -> None:
    student, teacher, targets = logits(17)
    pure, pure_gradient, _ = METHODS["taid"].objective({"t": T})(student, teacher, targets)
    text, text_gradient, _ = objectives.cross_entropy(student, None, targets)
    loss, gradient, extras = METHODS["taid"].objective({"t": T}, lm_weight=0.25)(student, teacher, targets)
    assert torch.allclose(loss, 0.75 * pure + 0.25 * text)
    assert torch.allclose(gradient, 0.75 * pure_gradient + 0.25 * text_gradient, atol=1e-7)
    assert torch.equal(extras["distillation_loss"], pure) and torch.equal(extras["lm_loss"], text)


@pytest.mark.parametrize(
    ("name", "texts", "code", "wanted"),
    [
        ("jensen_shannon", ["beta=1"], "out-of-range", "beta above 0 and below 1"),
        ("jensen_shannon", ["beta=x"], "wrong-format", "name=number"),
        ("forward_kl", ["beta=0.5"], "unknown-name", "it has none"),
        ("skew_forward_kl", ["skew=1"], "out-of-range", "at least 0 and below 1"),
        ("decoupled_top_k", ["k=2.5"], "out-of-range", "a whole number at least 1"),
        ("decoupled_top_k", ["kept_temperature=0"], "out-of-range", "above 0"),
        ("magic", ["x=1"], "unknown-name", "a method"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, texts: list[str], code: Code, wanted: str) -> None:
    with refuses(code, wanted=wanted):
        parse_settings(name, texts)


def test_settings_have_defaults_inside_their_ranges() -> None:
    for name, chosen in METHODS.items():
        assert set(defaults(name)) == set(chosen.ranges)
        require_settings(name, tuple(sorted(defaults(name).items())))
    assert parse_settings("decoupled_top_k", ["k=8"]) == (("k", 8.0),)


def test_a_k_that_is_not_below_the_vocabulary_is_refused() -> None:
    student, teacher, targets = logits(1, vocabulary=20)
    with refuses("out-of-range", wanted="20 ids", got="32"):
        method("decoupled_top_k").objective({})(student, teacher, targets)
