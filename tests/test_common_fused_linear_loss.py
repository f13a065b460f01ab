"""The fused loss against a dense float64 computation with torch's own autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_references import REFERENCES, T, arguments
from torch import Tensor

from common.errors import UserError
from common.fused_linear_loss import TeacherHead, chunks, fused_linear_loss
from common.training import require_finite_logits
from distill.methods import METHODS, defaults, method


def dense(
    name: str, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, teacher: TeacherHead, vocabulary: int
) -> Tensor:
    """Weighted mean of the objective, dense in float64 with autograd."""
    student_logits = (hidden @ weight.T)[:, :vocabulary]
    teacher_logits = (teacher.hidden_NE.double() @ teacher.weight_WE.double().T)[:, :vocabulary]
    valid = weights > 0
    per_token = REFERENCES[name](
        student_logits[valid], teacher_logits[valid], targets[valid], defaults(name) | arguments(name)
    )
    return (per_token * weights.double()[valid]).sum() / weights.double().sum()


def case(seed: int, tokens: int = 23, extreme: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor, TeacherHead, int]:
    """Unequal hidden sizes, unequal padded vocabularies, some tokens masked."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary, scale = 43, 60.0 if extreme else 1.0

    def random(*shape: int) -> Tensor:
        # Multiples of 1/16: logits are exact in float32, so that only the loss's own arithmetic is compared.
        return (torch.randn(*shape, generator=generator) * 16).round() / 16

    hidden, weight = random(tokens, 16) * scale, random(vocabulary + 3, 16)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    weights = torch.tensor([0.0, 1.0, 0.1])[torch.randint(0, 3, (tokens,), generator=generator)]
    weights[0] = 1.0
    teacher = TeacherHead(hidden_NE=random(tokens, 24), weight_WE=random(vocabulary + 8, 24))
    return hidden, weight, targets, weights, teacher, vocabulary


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 1000])
def test_value_and_gradients_match_the_dense_float64_reference(name: str, extreme: bool, chunk_tokens: int) -> None:
    hidden, weight, targets, weights, teacher, vocabulary = case(3, extreme=extreme)
    ours = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    theirs = hidden.double().requires_grad_(), weight.double().requires_grad_()
    result = fused_linear_loss(
        ours[0],
        ours[1],
        targets,
        weights,
        method(name).objective(arguments(name)),
        vocabulary=vocabulary,
        denominator=float(weights.sum()),
        teacher=teacher if method(name).needs_teacher else None,
        chunk_tokens=chunk_tokens,
    )
    reference = dense(name, theirs[0], theirs[1], targets, weights, teacher, vocabulary)
    result.loss.backward()
    reference.backward()
    assert float(result.loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-5, abs=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        assert (mine.grad - other.grad).abs().max() <= 1e-5 * other.grad.abs().max()
    assert ours[1].grad is not None and not ours[1].grad[vocabulary:].any(), "padded rows carry no mass"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), first=st.integers(1, 40), second=st.integers(1, 40))
def test_the_chunk_size_does_not_matter(seed: int, first: int, second: int) -> None:
    hidden, weight, targets, weights, teacher, vocabulary = case(seed, tokens=1 + seed % 30)
    results: list[tuple[float, Tensor]] = []
    for chunk_tokens in (first, second):
        leaf = hidden.clone().requires_grad_()
        loss = fused_linear_loss(
            leaf,
            weight,
            targets,
            weights,
            method("taid").objective({"t": T}),
            vocabulary=vocabulary,
            denominator=float(weights.sum()),
            teacher=teacher,
            chunk_tokens=chunk_tokens,
        ).loss
        loss.backward()
        assert leaf.grad is not None
        results.append((float(loss.detach()), leaf.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-7)


def test_micro_batches_add_up_to_one_batch() -> None:
    hidden, weight, targets, weights, teacher, vocabulary = case(5)
    denominator = float(weights.sum())

    def gradient(parts: list[slice]) -> Tensor:
        leaf = weight.clone().requires_grad_()
        for part in parts:
            head = TeacherHead(hidden_NE=teacher.hidden_NE[part], weight_WE=teacher.weight_WE)
            fused_linear_loss(
                hidden[part],
                leaf,
                targets[part],
                weights[part],
                method("forward_kl").objective({}),
                vocabulary=vocabulary,
                denominator=denominator,
                teacher=head,
            ).loss.backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.allclose(gradient([slice(None)]), gradient([slice(0, 4), slice(4, 15), slice(15, None)]), atol=1e-6)


def test_a_batch_without_valid_tokens_has_loss_and_gradient_zero() -> None:
    hidden, weight, targets, weights, teacher, vocabulary = case(7)
    leaf = hidden.clone().requires_grad_()
    result = fused_linear_loss(
        leaf,
        weight,
        targets,
        torch.zeros_like(weights),
        method("taid").objective({"t": T}),
        vocabulary=vocabulary,
        denominator=1e-9,
        teacher=teacher,
    )
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0 and leaf.grad is not None and not leaf.grad.any()


def test_masked_tokens_may_hold_anything() -> None:
    hidden, weight, targets, weights, _, vocabulary = case(9)
    hidden[weights == 0] = math.nan
    result = fused_linear_loss(
        hidden,
        weight,
        targets,
        weights,
        method("cross_entropy").objective({}),
        vocabulary=vocabulary,
        denominator=float(weights.sum()),
    )
    assert math.isfinite(float(result.loss))


def test_chunks_cover_all_tokens_once() -> None:
    assert [list(range(20))[part] for part in chunks(20, 8)] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]


def test_gradients_are_handed_over_once_and_scaled_by_what_comes_from_above() -> None:
    hidden, weight, targets, weights, teacher, vocabulary = case(11)

    def gradient(factor: float) -> Tensor:
        leaf = hidden.clone().requires_grad_()
        loss = fused_linear_loss(
            leaf,
            weight,
            targets,
            weights,
            method("taid").objective({"t": T}),
            vocabulary=vocabulary,
            denominator=float(weights.sum()),
            teacher=teacher,
        ).loss
        (factor * loss).backward(retain_graph=True)
        assert leaf.grad is not None
        found = leaf.grad.clone()
        with pytest.raises(RuntimeError, match="backward runs once"):
            loss.backward()
        return found

    assert torch.allclose(gradient(3.0), 3.0 * gradient(1.0), atol=1e-7)


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_logits_that_are_not_finite_are_named(side: str, value: float) -> None:
    hidden, weight, targets, weights, teacher, vocabulary = case(13)
    broken = hidden if side == "student" else teacher.hidden_NE
    broken[0, 0] = value
    result = fused_linear_loss(
        hidden,
        weight,
        targets,
        weights,
        method("taid").objective({"t": T}),
        vocabulary=vocabulary,
        denominator=float(weights.sum()),
        teacher=teacher,
    )
    assert {name for name, total in result.logit_sums.items() if not math.isfinite(float(total))} == {side}
    with pytest.raises(UserError, match=f"the {side}'s logits in optimizer step 7"):
        require_finite_logits(result.logit_sums, step=7)


@pytest.mark.parametrize("name", ["taid", "forward_kl", "cross_entropy"])
def test_bfloat16_products_keep_a_float32_sum_over_chunks(name: str) -> None:
    """Against the dense loss of the same rounded logits: what is left is the rounding of single products."""
    hidden, weight, targets, weights, teacher, vocabulary = case(15, tokens=200)
    rounded = (hidden.bfloat16().float(), weight.bfloat16().float())
    ours = rounded[0].clone().requires_grad_(), rounded[1].clone().requires_grad_()
    theirs = rounded[0].double().requires_grad_(), rounded[1].double().requires_grad_()
    result = fused_linear_loss(
        ours[0],
        ours[1],
        targets,
        weights,
        method(name).objective(arguments(name)),
        vocabulary=vocabulary,
        denominator=float(weights.sum()),
        teacher=teacher if method(name).needs_teacher else None,
        chunk_tokens=16,
        compute_dtype=torch.bfloat16,
    )
    reference = dense(name, theirs[0], theirs[1], targets, weights, teacher, vocabulary)
    result.loss.backward()
    reference.backward()
    assert float(result.loss.detach()) == pytest.approx(float(reference.detach()), rel=0.01)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None and mine.grad.dtype is torch.float32
        assert (mine.grad - other.grad).abs().max() <= 0.02 * other.grad.abs().max()


def test_a_head_without_gradient_costs_no_product_and_gets_none() -> None:
    hidden, weight, targets, weights, _, vocabulary = case(17)
    leaf = hidden.clone().requires_grad_()
    objective = method("cross_entropy").objective({})
    fused_linear_loss(
        leaf, weight, targets, weights, objective, vocabulary=vocabulary, denominator=float(weights.sum())
    ).loss.backward()
    assert leaf.grad is not None and leaf.grad.any() and weight.grad is None


def test_tied_weights_get_both_gradients() -> None:
    _, weight, targets, weights, _, vocabulary = case(19)
    tokens = torch.arange(len(targets)) % vocabulary
    objective = method("cross_entropy").objective({})
    ours, theirs = weight.clone().requires_grad_(), weight.double().requires_grad_()
    denominator = float(weights.sum())
    fused_linear_loss(
        torch.nn.functional.embedding(tokens, ours),
        ours,
        targets,
        weights,
        objective,
        vocabulary=vocabulary,
        denominator=denominator,
    ).loss.backward()
    logits = (torch.nn.functional.embedding(tokens, theirs) @ theirs.T)[:, :vocabulary]
    per_token = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    ((per_token * weights.double()).sum() / weights.double().sum()).backward()
    assert ours.grad is not None and theirs.grad is not None
    assert (ours.grad - theirs.grad).abs().max() <= 1e-5 * theirs.grad.abs().max()
