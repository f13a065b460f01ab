"""The output head and a loss in one chunked pass: no tensor of shape [all tokens, vocabulary] is ever made.

For each chunk of tokens the head's product gives logits, an objective gives value and gradient at those logits, and
two products carry the gradient to the hidden states and to the head's weight, all in the forward pass; the backward
pass only hands the finished gradients on. The gradient takes the place of the student's logits in memory. The weight's
gradient is accumulated in float32. Tokens of weight 0 are left out before any product. Both heads are cropped to the
shared vocabulary before the softmax, so that padded rows carry no mass.

The module holds the chunking and the products; `common.chunk_passes` runs the objective over a chunk. It names no
objective: cross-entropy comes from `common.divergences`, the distillation objectives from `distill.objectives`. Legend:
N tokens, V shared vocabulary, D and E hidden sizes of student and teacher, C tokens of one chunk.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.chunk_passes import LOSS, InPlace, Objective, PassName, Sums, chunks, default_pass, evaluate
from common.device import emulates_bfloat16

DEFAULT_CHUNK_TOKENS = 512
"""Tokens of a chunk in float32 or on a GPU: 512 x 151,665 float32 logits are 0.29 GiB."""
_TILE_ROWS = 2**10
"""Rows of the head in one product on a CPU: in float32 MKL takes 1.4 times as long for all 151,665 at once, and of a
head in another number format no more is cast at one time."""
_WEIGHT_ROWS = 2**14
"""Rows of the head whose gradient is formed at one time where it cannot be added up in the product itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherHead:
    """What a chunk of teacher logits is made from: hidden_NE and weight_WE with W >= V rows."""

    hidden_NE: Tensor
    weight_WE: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearLoss:
    """The loss of one micro-batch.

    Attributes:
        loss: scalar with gradient, the weighted sum over tokens divided by the denominator given.
        sums: detached weighted sums of the objective's further values, by name.
        logit_sums: sums of all logits by side, `student` and `teacher`: not finite where any logit is inf or NaN.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    logit_sums: dict[str, Tensor]


def default_chunk_tokens(device: torch.device, dtype: torch.dtype) -> int:
    """On a CPU as many as take the same memory in any number format."""
    return DEFAULT_CHUNK_TOKENS * 4 // dtype.itemsize if device.type == "cpu" else DEFAULT_CHUNK_TOKENS


def logit_buffer(num_tokens: int, vocabulary: int, *, like: Tensor) -> Tensor:
    """Room for a chunk's logits [num_tokens, vocabulary], as `like` in dtype and device.

    On CUDA rows begin at multiples of 128 bytes: with Qwen's odd 151,665 ids the products would else fall back to
    kernels that read two bytes at a time.
    """
    row = -(-vocabulary // 64) * 64 if like.device.type == "cuda" else vocabulary
    return like.new_empty(num_tokens, row)[:, :vocabulary]


@functools.cache
def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In what products of values in `dtype` are computed: float32 on a CPU that would only emulate it.

    The values are rounded to `dtype` all the same, and added up in float32 either way; emulated, a product takes
    several times as long. It serves whoever asks for bfloat16 on such a CPU: `common.device` chooses float32 there.
    """
    emulated = dtype is torch.bfloat16 and device.type == "cpu" and emulates_bfloat16()
    return torch.float32 if emulated else dtype


def head_product(hidden_CD: Tensor, head_VD: Tensor, out_CV: Tensor) -> Tensor:
    """`out = hidden head^T`, the logits of a chunk, of values in the dtype of `hidden` and `out`; returns `out_CV`.

    On a CPU the head may come in another dtype.
    """
    dtype, product = out_CV.dtype, product_dtype(out_CV.dtype, out_CV.device)
    if out_CV.device.type != "cpu" or (head_VD.dtype is dtype is product is not torch.float32):
        return torch.mm(hidden_CD, head_VD.t(), out=out_CV)
    hidden_CD = hidden_CD.to(product)
    for rows, tile_RD in _tiles(head_VD, dtype, product):
        if product is dtype:
            torch.mm(hidden_CD, tile_RD.t(), out=out_CV[:, rows])
        else:
            out_CV[:, rows] = torch.mm(hidden_CD, tile_RD.t())
    return out_CV


def _hidden_gradient(gradient_CV: Tensor, head_VD: Tensor) -> Tensor:
    """`gradient head`; over a head that is cast in tiles, their products are added up in float32."""
    dtype, product = gradient_CV.dtype, product_dtype(gradient_CV.dtype, gradient_CV.device)
    if head_VD.dtype is dtype is product:
        return torch.mm(gradient_CV, head_VD)
    total_CD = gradient_CV.new_empty(len(gradient_CV), head_VD.size(1), dtype=torch.float32)
    for rows, tile_RD in _tiles(head_VD, dtype, product):
        _add_product(total_CD, gradient_CV[:, rows].to(product), tile_RD, first=rows.start == 0)
    return total_CD


def _add_weight_gradient(total_VD: Tensor, gradient_CV: Tensor, hidden_CD: Tensor, *, first: bool) -> None:
    """`total += gradient^T hidden` in float32; the first chunk's product starts it."""
    dtype, product = gradient_CV.dtype, product_dtype(gradient_CV.dtype, gradient_CV.device)
    if dtype is torch.float32:
        _add_product(total_VD, gradient_CV.t(), hidden_CD, first=first)
        return
    hidden_CD = hidden_CD.to(product)
    # A slab at a time: all of them at once would be another copy of the head.
    for rows in chunks(len(total_VD), _WEIGHT_ROWS if product is dtype else _TILE_ROWS):
        _add_product(total_VD[rows], gradient_CV[:, rows].to(product).t(), hidden_CD, first=first)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """`total += a b` in float32. A product of a low precision is rounded to it, so it must not be added up in it."""
    if a.dtype is torch.float32:
        total.addmm_(a, b, beta=0.0 if first else 1.0)
    elif first:
        total.copy_(torch.mm(a, b))
    else:
        total.add_(torch.mm(a, b))


def _tiles(head_VD: Tensor, *dtypes: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Which rows of a head, and these, cast to each of the dtypes in turn, until the next ones take their place."""
    buffers: list[Tensor] = []
    for before, dtype in itertools.pairwise((head_VD.dtype, *dtypes)):
        if dtype is not before:
            buffers.append(head_VD.new_empty(min(_TILE_ROWS, len(head_VD)), head_VD.size(1), dtype=dtype))
    for rows in chunks(len(head_VD), _TILE_ROWS):
        tile_RD = head_VD[rows]
        for buffer_RD in buffers:
            tile_RD = buffer_RD[: len(tile_RD)].copy_(tile_RD)
        yield rows, tile_RD


def _shared_rows(head_WD: Tensor, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """The first rows of a head, on a GPU in `dtype`.

    On a CPU the products cast a tile at a time, because a copy of the head would be a large part of what the loss
    needs. It is cast again for each chunk, so chunks of a narrow format are longer there.
    """
    head_VD = head_WD[:vocabulary]
    return head_VD if head_VD.device.type == "cpu" else head_VD.to(dtype)


class _FusedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_ND: Tensor,
        weight_WD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        objective: Objective | InPlace,
        teacher: TeacherHead | None,
        vocabulary: int,
        denominator: float,
        chunk_tokens: int,
        compute_dtype: torch.dtype,
        loss_pass: PassName,
        sums: Sums,
        logit_sums: Sums,
    ) -> Tensor:
        head_VD = _shared_rows(weight_WD, vocabulary, compute_dtype)
        teacher_head_VE = None if teacher is None else _shared_rows(teacher.weight_WE, vocabulary, compute_dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight_WD = torch.empty_like(weight_WD, dtype=torch.float32) if needs_weight else None
        valid_N = weights_N.nonzero().squeeze(1)
        # One buffer a side for all chunks: fresh memory of this size costs as much as a pass over it.
        most = min(chunk_tokens, len(valid_N))
        like = hidden_ND.new_empty(0, dtype=compute_dtype)
        student_buffer_CV = logit_buffer(most, vocabulary, like=like)
        teacher_buffer_CV = None if teacher is None else logit_buffer(most, vocabulary, like=like)
        # Without a valid token one empty chunk names the further values: all processes add up the same ones.
        for part in list(chunks(len(valid_N), chunk_tokens)) or [slice(0, 0)]:
            rows_C = valid_N[part]
            hidden_CD = hidden_ND[rows_C].to(compute_dtype)
            teacher_logits_CV = None
            if teacher is not None and teacher_head_VE is not None and teacher_buffer_CV is not None:
                teacher_hidden_CE = teacher.hidden_NE[rows_C].to(compute_dtype)
                teacher_logits_CV = head_product(teacher_hidden_CE, teacher_head_VE, teacher_buffer_CV[: len(rows_C)])
            gradient_CV = evaluate(
                objective,
                head_product(hidden_CD, head_VD, student_buffer_CV[: len(rows_C)]),
                teacher_logits_CV,
                targets_N[rows_C],
                weights_N[rows_C],
                denominator=denominator,
                sums=sums,
                logit_sums=logit_sums,
                name=loss_pass if len(rows_C) else "whole",
            )
            if grad_hidden_ND is not None:
                grad_hidden_ND[rows_C] = _hidden_gradient(gradient_CV, head_VD).to(hidden_ND.dtype)
            if grad_weight_WD is not None:
                _add_weight_gradient(grad_weight_WD[:vocabulary], gradient_CV, hidden_CD, first=part.start == 0)
        if grad_weight_WD is not None:
            grad_weight_WD[vocabulary:] = 0.0
            grad_weight_WD = grad_weight_WD.to(weight_WD.dtype)
        ctx.gradients = grad_hidden_ND, grad_weight_WD
        return (sums.pop(LOSS) / denominator).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_output,) = grad_outputs
        # Handed over rather than saved: autograd then keeps the very tensors as .grad, without a copy.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the fused loss gives its gradients away: backward runs once for each forward pass")
        if grad_output.device.type != "cpu" or float(grad_output) != 1.0:
            gradients = [None if gradient is None else gradient.mul_(grad_output) for gradient in gradients]
        return *gradients, *([None] * 11)


def fused_linear_loss(
    hidden_ND: Tensor,
    weight_WD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    objective: Objective | InPlace,
    *,
    vocabulary: int,
    denominator: float,
    teacher: TeacherHead | None = None,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype = torch.float32,
    loss_pass: PassName | None = None,
) -> LinearLoss:
    """Weighted mean of an objective over the tokens of a micro-batch, with gradient to hidden states and head.

    Args:
        hidden_ND: the student's final hidden states.
        weight_WD: the student's head, W >= vocabulary rows; the rows beyond get a gradient of zero.
        targets_N: next-token ids, int64; ignored where the weight is 0.
        weights_N: loss weight of each token, float32, >= 0.
        objective: value and gradient of one chunk of logits.
        vocabulary: V, the ids that both tokenizers own; both heads are cropped to it.
        denominator: sum of the weights over the whole optimizer step, all micro-batches and ranks.
        teacher: the teacher's hidden states and head, or None.
        chunk_tokens: tokens whose logits exist at one time; None takes `default_chunk_tokens`.
        compute_dtype: dtype of the matrix products; values and softmax are float32.
        loss_pass: how the objective is run over a chunk; None takes what suits the device.

    Returns:
        The loss and the objective's further sums. With no valid token the loss and every gradient are 0. Its backward
        pass can be run once.
    """
    sums, logit_sums = Sums(weights_N), Sums(weights_N)
    loss: Tensor = _FusedLinearLoss.apply(  # pyright: ignore[reportAssignmentType]
        hidden_ND,
        weight_WD,
        targets_N,
        weights_N,
        objective,
        teacher,
        vocabulary,
        denominator,
        chunk_tokens or default_chunk_tokens(hidden_ND.device, compute_dtype),
        compute_dtype,
        loss_pass or default_pass(hidden_ND.device),
        sums,
        logit_sums,
    )
    return LinearLoss(loss=loss, sums=dict(sums), logit_sums=dict(logit_sums))
