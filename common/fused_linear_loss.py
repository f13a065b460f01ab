"""The output head and a loss in one chunked pass: no tensor of shape [all tokens, vocabulary] is ever made.

For each chunk of tokens the head's product gives logits, an objective gives loss and gradient at those logits, and two
products carry the gradient to the hidden states and to the head's weight, all in the forward pass; the backward pass
only returns the finished gradients. The gradient overwrites the student's logits. The weight's gradient is accumulated
in float32. Tokens of weight 0 are left out before any product. Both heads are cropped to the shared vocabulary before
the softmax, so that padding carries no mass.

`common.chunk_passes` runs the objective over a chunk: cross-entropy from `common.divergences`, or one of
`distill.objectives`. Legend: N tokens, V shared vocabulary, W rows of a head, D and E hidden sizes of student and
teacher, C tokens of one chunk.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from common.chunk_passes import LOSS, InPlace, Objective, PassName, Sums, chunks, default_pass, evaluate
from common.device import emulates_bfloat16, on_grid

DEFAULT_CHUNK_TOKENS = 512
"""Tokens of a chunk in float32 or on a GPU: 512 x 151,665 float32 logits are 0.29 GiB."""
_TILE_ROWS = 2**10
"""Rows of the head in one product on a CPU: in float32 MKL takes 1.4 times as long for all 151,665 at once, and a head
in another number format is cast in pieces of this size."""
_WEIGHT_ROWS = 2**14
"""Rows of the head whose gradient is computed at once where the product itself cannot add it up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherHead:
    """The teacher's hidden states and head, from which its logits are made; W >= V."""

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
    """512; on a CPU, the number that takes the same memory in any number format."""
    return DEFAULT_CHUNK_TOKENS * 4 // dtype.itemsize if device.type == "cpu" else DEFAULT_CHUNK_TOKENS


def logit_buffer(num_tokens: int, vocab_size: int, *, like: Tensor) -> Tensor:
    """An empty tensor for a chunk's logits [num_tokens, vocab_size], with the dtype and device of `like`."""
    # On CUDA rows begin at multiples of 128 bytes: with Qwen's odd 151,665 ids the products would otherwise use kernels
    # that read two bytes at a time.
    row = -(-vocab_size // 64) * 64 if like.device.type == "cuda" else vocab_size
    return like.new_empty(num_tokens, row)[:, :vocab_size]


@functools.cache
def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which products of values in `dtype` are computed: float32 on a CPU that only emulates `dtype`.

    The values are rounded to `dtype` and added up in float32 either way; an emulated product takes several times as
    long. For users who ask for bfloat16 on such a CPU, where `common.device` chooses float32.
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
    """`gradient head`; the products of a head that is cast in tiles are added up in float32."""
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
    # In slabs: all rows at once would be another copy of the head.
    for rows in chunks(len(total_VD), _WEIGHT_ROWS if product is dtype else _TILE_ROWS):
        _add_product(total_VD[rows], gradient_CV[:, rows].to(product).t(), hidden_CD, first=first)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """`total += a b` in float32, in which a product of lower precision must be added up."""
    if a.dtype is torch.float32:
        total.addmm_(a, b, beta=0.0 if first else 1.0)
    elif first:
        total.copy_(torch.mm(a, b))
    else:
        total.add_(torch.mm(a, b))


def _tiles(head_VD: Tensor, *dtypes: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Slices of a head's rows, and these rows cast to each of the dtypes in turn; the next tile overwrites them."""
    buffers: list[Tensor] = []
    for before, dtype in itertools.pairwise((head_VD.dtype, *dtypes)):
        if dtype is not before:
            buffers.append(head_VD.new_empty(min(_TILE_ROWS, len(head_VD)), head_VD.size(1), dtype=dtype))
    for rows in chunks(len(head_VD), _TILE_ROWS):
        tile_RD = head_VD[rows]
        for buffer_RD in buffers:
            tile_RD = buffer_RD[: len(tile_RD)].copy_(tile_RD)
        yield rows, tile_RD


def _shared_rows(head_WD: Tensor, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """The first rows of a head, on a GPU in `dtype`."""
    # On a CPU the products cast it in tiles, because a copy of the head would be a large part of the loss's memory. It
    # is cast again for each chunk, so chunks of a narrow format are longer there.
    head_VD = head_WD[:vocab_size]
    return head_VD if head_VD.device.type == "cpu" else head_VD.to(dtype)


def _size_of(dtype: torch.dtype, device: torch.device) -> Callable[[int], int]:
    """From a number of tokens to the rows of its products: more on a CPU with bfloat16 units (`device.on_grid`)."""
    is_narrow = device.type == "cpu" and product_dtype(dtype, device) is torch.bfloat16
    return on_grid if is_narrow else int


def _filled(hidden_CD: Tensor, rows: int) -> Tensor:
    """Hidden states with rows of 0 after them, `rows` in all."""
    return hidden_CD if len(hidden_CD) == rows else pad(hidden_CD, (0, 0, 0, rows - len(hidden_CD)))


def _logits(
    hidden_ND: Tensor, head_VD: Tensor, buffer_CV: Tensor, rows_C: Tensor, num_rows: int
) -> tuple[Tensor, Tensor]:
    """Hidden states of these rows in the buffer's dtype, filled up to `num_rows`, and their logits in the buffer."""
    hidden_CD = _filled(hidden_ND[rows_C].to(buffer_CV.dtype), num_rows)
    return hidden_CD, head_product(hidden_CD, head_VD, buffer_CV[:num_rows])


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
        vocab_size: int,
        denominator: float,
        chunk_tokens: int,
        compute_dtype: torch.dtype,
        loss_pass: PassName,
        sums: Sums,
        logit_sums: Sums,
    ) -> Tensor:
        head_VD = _shared_rows(weight_WD, vocab_size, compute_dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight_WD = torch.empty_like(weight_WD, dtype=torch.float32) if needs_weight else None
        valid_N = weights_N.nonzero().squeeze(1)
        # One buffer per side for all chunks: fresh memory of this size costs as much as a pass over it.
        size = _size_of(compute_dtype, hidden_ND.device)
        most, like = size(min(chunk_tokens, len(valid_N))), hidden_ND.new_empty(0, dtype=compute_dtype)
        buffer_CV, teacher_side = logit_buffer(most, vocab_size, like=like), None
        if teacher is not None:
            teacher_head_VE = _shared_rows(teacher.weight_WE, vocab_size, compute_dtype)
            teacher_side = teacher.hidden_NE, teacher_head_VE, logit_buffer(most, vocab_size, like=like)
        # Without a valid token one empty chunk names the further values, so that all processes sum the same names.
        for part in list(chunks(len(valid_N), chunk_tokens)) or [slice(0, 0)]:
            rows_C = valid_N[part]
            num_real, num_rows = len(rows_C), size(len(rows_C))
            # The filling rows are 0: so are their logits, which stay and are their gradient.
            hidden_CD, gradient_CV = _logits(hidden_ND, head_VD, buffer_CV, rows_C, num_rows)
            evaluate(
                objective,
                gradient_CV[:num_real],
                None if teacher_side is None else _logits(*teacher_side, rows_C, num_rows)[1][:num_real],
                targets_N[rows_C],
                weights_N[rows_C],
                denominator=denominator,
                sums=sums,
                logit_sums=logit_sums,
                name=loss_pass if num_real else "whole",
            )
            if grad_hidden_ND is not None:
                grad_hidden_ND[rows_C] = _hidden_gradient(gradient_CV, head_VD)[:num_real].to(hidden_ND.dtype)
            if grad_weight_WD is not None:
                _add_weight_gradient(grad_weight_WD[:vocab_size], gradient_CV, hidden_CD, first=part.start == 0)
        if grad_weight_WD is not None:
            grad_weight_WD[vocab_size:] = 0.0  # padded rows have no logits
        ctx.gradients = grad_hidden_ND, None if grad_weight_WD is None else grad_weight_WD.to(weight_WD.dtype)
        return (sums.pop(LOSS) / denominator).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_output,) = grad_outputs
        # Not through save_for_backward: so autograd keeps these very tensors as .grad, without a copy.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the fused loss keeps no gradients: backward runs once for each forward pass")
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
    vocab_size: int,
    denominator: float,
    teacher: TeacherHead | None = None,
    chunk_tokens: int | None = None,
    compute_dtype: torch.dtype = torch.float32,
    loss_pass: PassName | None = None,
) -> LinearLoss:
    """Weighted mean of an objective over the tokens of a micro-batch, with gradient to hidden states and head.

    With no valid token the loss and every gradient are 0. The backward pass runs once.

    Args:
        weight_WD: the student's head, W >= vocab_size; the rows beyond get a gradient of zero.
        targets_N: next-token ids, int64; ignored where the weight is 0.
        weights_N: loss weight of each token, float32, >= 0.
        vocab_size: V, the ids that both tokenizers share; both heads are cropped to it.
        denominator: sum of the weights over the whole optimizer step, all micro-batches and ranks.
        chunk_tokens: tokens whose logits exist at once; None takes `default_chunk_tokens`.
        compute_dtype: dtype of the matrix products; values and softmax are float32.
        loss_pass: how the objective is run over a chunk; None takes what suits the device.
    """
    sums, logit_sums = Sums(weights_N), Sums(weights_N)
    loss: Tensor = _FusedLinearLoss.apply(  # pyright: ignore[reportAssignmentType]
        hidden_ND,
        weight_WD,
        targets_N,
        weights_N,
        objective,
        teacher,
        vocab_size,
        denominator,
        chunk_tokens or default_chunk_tokens(hidden_ND.device, compute_dtype),
        compute_dtype,
        loss_pass or default_pass(hidden_ND.device),
        sums,
        logit_sums,
    )
    return LinearLoss(loss=loss, sums=dict(sums), logit_sums=dict(logit_sums))
