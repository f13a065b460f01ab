"""The fused loss against a dense float64 computation with torch's own autograd."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from errors_tiny import refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_references import REFERENCES, arguments
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import common.fused_linear_loss as fused_linear_loss_module
from common import chunk_passes
from common.chunk_passes import chunks
from common.device import on_grid
from common.fused_linear_loss import (
    LinearLoss,
    TeacherHead,
    default_chunk_tokens,
    fused_linear_loss,
    head_product,
    product_dtype,
)
from common.training import require_finite
from distill.methods import METHODS, defaults, method


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the loss of one micro-batch takes: hidden states, head, targets, weights, teacher, shared vocabulary."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    weights: Tensor
    teacher: TeacherHead
    vocabulary: int

    def fused(
        self, name: str, hidden: Tensor, weight: Tensor, *, part: slice = slice(None), **options: Any
    ) -> LinearLoss:
        """The product's loss of method `name` on a part of the tokens, with these hidden states and head."""
        options = {"denominator": float(self.weights.sum())} | options
        head = TeacherHead(hidden_NE=self.teacher.hidden_NE[part], weight_WE=self.teacher.weight_WE)
        return fused_linear_loss(
            hidden[part],
            weight,
            self.targets[part],
            self.weights[part],
            method(name).objective(arguments(name)),
            vocab_size=self.vocabulary,
            teacher=head if method(name).needs_teacher else None,
            **options,
        )

    def dense(self, name: str, hidden: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean of the objective, dense in float64 with autograd."""
        student_logits = (hidden @ weight.T)[:, : self.vocabulary]
        teacher_logits = (self.teacher.hidden_NE.double() @ self.teacher.weight_WE.double().T)[:, : self.vocabulary]
        valid, weights = self.weights > 0, self.weights.double()
        per_token = REFERENCES[name](
            student_logits[valid], teacher_logits[valid], self.targets[valid], defaults(name) | arguments(name)
        )
        return (per_token * weights[valid]).sum() / weights.sum()


def case(seed: int, tokens: int = 23, extreme: bool = False) -> Case:
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
    return Case(hidden=hidden, weight=weight, targets=targets, weights=weights, teacher=teacher, vocabulary=vocabulary)


def leaf(tensor: Tensor) -> Tensor:
    """A copy that collects a gradient."""
    return tensor.clone().requires_grad_()


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    """The gradient of each leaf after the backward pass."""
    loss.backward()
    found = [one.grad for one in leaves]
    assert all(one is not None for one in found)
    return [one for one in found if one is not None]


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(("chunk_tokens", "fill"), [(1, False), (5, False), (1000, False), (5, True), (1000, True)])
def test_value_and_gradients_match_the_dense_float64_reference(
    name: str, extreme: bool, chunk_tokens: int, fill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fill:  # as where every new shape of a product costs a kernel
        monkeypatch.setattr(fused_linear_loss_module, "_size_of", lambda *given: on_grid)
    batch = case(3, extreme=extreme)
    ours, theirs = [
        [leaf(one.to(dtype)) for one in (batch.hidden, batch.weight)] for dtype in (torch.float32, torch.float64)
    ]
    loss, reference = batch.fused(name, *ours, chunk_tokens=chunk_tokens).loss, batch.dense(name, *theirs)
    found, wanted = gradients(loss, *ours), gradients(reference, *theirs)
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-5, abs=1e-6)
    for mine, other in zip(found, wanted, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()
    assert not found[1][batch.vocabulary :].any(), "padded rows carry no mass"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_many_blocks_tiles_and_slabs_are_one_whole(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The sizes of the production vocabulary's parts against one another's: 4 rows a block, 7 of the head a tile."""
    monkeypatch.setattr(chunk_passes, "_BLOCK_LOGITS", 4 * 43)
    monkeypatch.setattr(fused_linear_loss_module, "_TILE_ROWS", 7)
    monkeypatch.setattr(fused_linear_loss_module, "_WEIGHT_ROWS", 9)
    for fill in (False, True):
        test_value_and_gradients_match_the_dense_float64_reference(name, False, 10, fill, monkeypatch)
    if name in ("taid", "cross_entropy"):
        for product in (torch.bfloat16, torch.float32):
            test_bfloat16_products_keep_a_float32_sum_over_chunks(monkeypatch, name, product)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 1000),
    first=st.integers(1, 40),
    second=st.integers(1, 40),
)
def test_the_chunk_size_does_not_matter(name: str, seed: int, first: int, second: int) -> None:
    batch = case(seed, tokens=1 + seed % 30)
    results: list[tuple[float, list[Tensor]]] = []
    for chunk_tokens in (first, second):
        leaves = leaf(batch.hidden), leaf(batch.weight)
        loss = batch.fused(name, *leaves, chunk_tokens=chunk_tokens).loss
        results.append((float(loss.detach()), gradients(loss, *leaves)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6, abs=1e-7)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert (one - other).abs().max() <= 1e-5 * float(other.abs().max()) + 1e-7


def test_micro_batches_add_up_to_one_batch() -> None:
    batch = case(5)

    def gradient(*parts: slice) -> Tensor:
        weight = leaf(batch.weight)
        losses = [batch.fused("forward_kl", batch.hidden, weight, part=part).loss for part in parts]
        return gradients(torch.stack(losses).sum(), weight)[0]

    assert torch.allclose(gradient(slice(None)), gradient(slice(0, 4), slice(4, 15), slice(15, None)), atol=1e-6)


def test_a_batch_without_valid_tokens_has_loss_and_gradient_zero() -> None:
    batch = replace(case(7), weights=torch.zeros(23))
    leaves = leaf(batch.hidden), leaf(batch.weight)
    result = batch.fused("taid", *leaves, denominator=1e-9)
    assert float(result.loss.detach()) == 0.0 and not any(one.any() for one in gradients(result.loss, *leaves))
    # Under the names that other processes' sums have: theirs are added up by name.
    assert {name: float(total) for name, total in result.sums.items()} == {"kl": 0.0}
    assert {side: float(total) for side, total in result.logit_sums.items()} == {"student": 0.0, "teacher": 0.0}


def test_masked_tokens_may_hold_anything() -> None:
    batch = case(9)
    batch.hidden[batch.weights == 0] = math.nan
    assert math.isfinite(float(batch.fused("cross_entropy", batch.hidden, batch.weight).loss))


def test_chunks_cover_all_tokens_once() -> None:
    assert [list(range(20))[part] for part in chunks(20, 8)] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]


def test_gradients_are_handed_over_once_and_scaled_by_what_comes_from_above() -> None:
    batch = case(11)

    def gradient(factor: float) -> Tensor:
        hidden = leaf(batch.hidden)
        loss = batch.fused("taid", hidden, batch.weight).loss
        (factor * loss).backward(retain_graph=True)
        assert hidden.grad is not None
        found = hidden.grad.clone()
        with pytest.raises(RuntimeError, match="backward runs once"):
            loss.backward()
        return found

    assert torch.allclose(gradient(3.0), 3.0 * gradient(1.0), atol=1e-7)


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_logits_that_are_not_finite_are_named(side: str, value: float) -> None:
    batch = case(13)
    broken = batch.hidden if side == "student" else batch.teacher.hidden_NE
    broken[0, 0] = value
    sums = batch.fused("taid", batch.hidden, batch.weight).logit_sums
    assert {name for name, total in sums.items() if not math.isfinite(float(total))} == {side}
    with refuses("not-finite", wanted=f"finite {side}", got="optimizer step 7"):
        require_finite({name: float(total) for name, total in sums.items()}, step=7)


@pytest.mark.parametrize("name", ["taid", "forward_kl", "cross_entropy"])
@pytest.mark.parametrize("product", [torch.bfloat16, torch.float32])
def test_bfloat16_products_keep_a_float32_sum_over_chunks(
    monkeypatch: pytest.MonkeyPatch, name: str, product: torch.dtype
) -> None:
    """Against the dense loss of the same rounded logits: what is left is the rounding of single products."""
    monkeypatch.setattr(fused_linear_loss_module, "product_dtype", lambda dtype, device: product)
    batch = case(15, tokens=200)
    rounded = [one.bfloat16() for one in (batch.hidden, batch.weight)]
    ours, theirs = [leaf(one.float()) for one in rounded], [leaf(one.double()) for one in rounded]
    loss = batch.fused(name, *ours, chunk_tokens=16, compute_dtype=torch.bfloat16).loss
    reference = batch.dense(name, *theirs)
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=0.01)
    for mine, other in zip(gradients(loss, *ours), gradients(reference, *theirs), strict=True):
        assert mine.dtype is torch.float32
        assert (mine - other).abs().max() <= 0.02 * other.abs().max()


@pytest.mark.parametrize("product", [torch.bfloat16, torch.float32])
def test_on_a_cpu_no_head_is_copied_into_another_number_format(
    monkeypatch: pytest.MonkeyPatch, product: torch.dtype
) -> None:
    monkeypatch.setattr(fused_linear_loss_module, "product_dtype", lambda dtype, device: product)
    monkeypatch.setattr(fused_linear_loss_module, "_size_of", lambda *given: int)  # 2 tokens would become 32
    for rows in ("_TILE_ROWS", "_WEIGHT_ROWS"):
        monkeypatch.setattr(fused_linear_loss_module, rows, 5)
    batch = case(16, tokens=3)
    teacher = TeacherHead(hidden_NE=batch.teacher.hidden_NE, weight_WE=batch.teacher.weight_WE.bfloat16())
    batch, leaves = replace(batch, teacher=teacher), (leaf(batch.hidden), leaf(batch.weight))
    there = {one.untyped_storage().data_ptr() for one in (*leaves, teacher.hidden_NE, teacher.weight_WE)}
    made: list[tuple[int, torch.dtype]] = []

    class Made(TorchDispatchMode):
        """Notes size and number format of every tensor that is no view of what there was."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in there:
                made.append((result.numel(), result.dtype))
            return result

    with Made():
        batch.fused("taid", *leaves, chunk_tokens=2, compute_dtype=torch.bfloat16).loss.backward()
    gradient = (leaves[1].numel(), torch.float32), (batch.vocabulary * leaves[1].size(1), torch.float32)
    largest = max(size for size, dtype in made if (size, dtype) not in gradient)
    assert largest <= 3 * batch.vocabulary < leaves[1].numel() // 2, "logits and tiles, and no head"


def test_products_are_computed_in_float32_where_bfloat16_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda, asked = torch.device("cpu"), torch.device("cuda"), product_dtype.__wrapped__
    for emulated, on_a_cpu in ((True, torch.float32), (False, torch.bfloat16)):
        monkeypatch.setattr(fused_linear_loss_module, "emulates_bfloat16", lambda emulated=emulated: emulated)
        assert asked(torch.bfloat16, cpu) is on_a_cpu
        assert asked(torch.bfloat16, cuda) is torch.bfloat16
        assert asked(torch.float32, cpu) is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_take_the_same_memory_in_either_number_format(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(fused_linear_loss_module, "DEFAULT_CHUNK_TOKENS", 4)
    monkeypatch.setattr(fused_linear_loss_module, "_size_of", lambda *given: int)
    batch, chunk = case(18, tokens=40), 4 if dtype is torch.float32 else 8
    assert default_chunk_tokens(torch.device("cpu"), dtype) == chunk
    assert default_chunk_tokens(torch.device("cuda"), dtype) == 4
    sizes: list[int] = []
    real = fused_linear_loss_module.logit_buffer
    monkeypatch.setattr(
        fused_linear_loss_module,
        "logit_buffer",
        lambda tokens, *rest, like: sizes.append(tokens) or real(tokens, *rest, like=like),
    )
    batch.fused("taid", batch.hidden, batch.weight, compute_dtype=dtype)
    assert sizes == [chunk, chunk], "of the student and of the teacher"


@pytest.mark.parametrize("rows", [43, 46])
def test_emulated_products_are_those_of_float32_rounded(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """A float32 head and a bfloat16 one against the float32 product of the rounded values, which is exact here."""
    monkeypatch.setattr(fused_linear_loss_module, "product_dtype", lambda dtype, device: torch.float32)
    monkeypatch.setattr(fused_linear_loss_module, "_TILE_ROWS", 7)
    generator = torch.Generator().manual_seed(1)

    def sixteenths(*shape: int) -> Tensor:
        size = torch.randint(2, 33, shape, generator=generator)
        return size * (1 - 2 * torch.randint(0, 2, shape, generator=generator)) / 16

    hidden, exact = sixteenths(9, 16).bfloat16(), sixteenths(rows, 16)
    wanted = (hidden.float() @ exact.T).bfloat16()
    # 2^-12 more, which bfloat16 does not hold: the sums are exact where the head is rounded first, and only there.
    for head in (exact + 2**-12, exact.bfloat16()):
        assert torch.equal(head_product(hidden, head, hidden.new_empty(9, rows)), wanted)
    assert not torch.equal((hidden.float() @ (exact + 2**-12).T).bfloat16(), wanted)


def test_a_head_without_gradient_costs_no_product_and_gets_none() -> None:
    batch = case(17)
    hidden = leaf(batch.hidden)
    (gradient,) = gradients(batch.fused("cross_entropy", hidden, batch.weight).loss, hidden)
    assert gradient.any() and batch.weight.grad is None


def test_tied_weights_get_both_gradients() -> None:
    batch = case(19)
    tokens = torch.arange(len(batch.targets)) % batch.vocabulary
    ours, theirs = leaf(batch.weight), leaf(batch.weight.double())
    found = batch.fused("cross_entropy", torch.nn.functional.embedding(tokens, ours), ours).loss
    wanted = batch.dense("cross_entropy", torch.nn.functional.embedding(tokens, theirs), theirs)
    mine, other = gradients(found, ours)[0], gradients(wanted, theirs)[0]
    assert (mine - other).abs().max() <= 1e-5 * other.abs().max()
