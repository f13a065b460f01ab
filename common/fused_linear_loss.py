"""The output head and a loss in one chunked pass: no tensor of shape [all tokens, vocabulary] is ever made.

For each chunk of tokens the head's product gives logits, an objective gives value and gradient at those logits, and
two products carry the gradient to the hidden states and to the head's weight, all in the forward pass; the backward
pass only hands the finished gradients on. The gradient takes the place of the student's logits in memory, and on a CPU
the objective works on a few rows at a time, so that its temporaries stay in the cache. The weight's gradient is
accumulated in float32. Tokens of weight 0 are left out before any product. Both heads are cropped to the shared
vocabulary before the softmax, so that padded rows carry no mass.

The module holds the chunking and the products. It names no objective: cross-entropy comes from `common.divergences`,
the distillation objectives from `distill.objectives`. Legend: N tokens, V shared vocabulary, D and E hidden sizes of
student and teacher, C tokens of one chunk, R rows of one block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DEFAULT_CHUNK_TOKENS = 512
"""Tokens of a chunk: 512 x 151,665 float32 logits are 0.29 GiB."""
_BLOCK_LOGITS = 2**20
"""Logits of a block on a CPU: 4 MiB of float32, so that a block's few temporaries fit the last cache."""
_TILE_ROWS = 2**10
"""Rows of the head in one float32 product on a CPU: MKL takes 1.4 times as long for all 151,665 at once."""
_WEIGHT_ROWS = 2**14
"""Rows of the head whose gradient is formed at one time where it cannot be added up in the product itself."""

_LOSS = ""
"""The loss itself among the sums; no objective names a value so."""


class Objective(Protocol):
    """One chunk of logits to per-token values and gradient."""

    def __call__(
        self, student_logits_CV: Tensor, teacher_logits_CV: Tensor | None, targets_C: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return loss_C, gradient_CV at the student's logits, and further per-token values to be averaged."""
        ...


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


def chunks(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    """Consecutive slices of at most `chunk_tokens` tokens."""
    for start in range(0, num_tokens, chunk_tokens):
        yield slice(start, min(start + chunk_tokens, num_tokens))


def head_product(hidden_CD: Tensor, head_VD: Tensor, out_CV: Tensor) -> Tensor:
    """`out = hidden head^T`, the logits of a chunk, in the dtype of all three; returns `out_CV`."""
    if out_CV.device.type != "cpu" or out_CV.dtype is not torch.float32:
        return torch.mm(hidden_CD, head_VD.t(), out=out_CV)
    for rows in chunks(len(head_VD), _TILE_ROWS):
        torch.mm(hidden_CD, head_VD[rows].t(), out=out_CV[:, rows])
    return out_CV


class _Sums(dict[str, Tensor]):
    """Scalars that add up, in float64 where the device has it."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self._zero = like.new_zeros((), dtype=torch.float64 if like.device.type != "mps" else torch.float32)

    def add(self, name: str, value: Tensor) -> None:
        self[name] = self.get(name, self._zero) + value.to(self._zero.dtype)


def _evaluate(
    objective: Objective,
    student_CV: Tensor,
    teacher_CV: Tensor | None,
    targets_C: Tensor,
    weights_C: Tensor,
    denominator: float,
    sums: _Sums,
    logit_sums: _Sums,
) -> Tensor:
    """Adds a chunk's values to the sums and turns its student logits, in place, into their weighted gradient."""
    on_cpu = student_CV.device.type == "cpu"
    rows = max(1, _BLOCK_LOGITS // student_CV.size(1)) if on_cpu else len(student_CV)
    for block in chunks(len(student_CV), rows):
        student_RV = student_CV[block].float()
        teacher_RV = None if teacher_CV is None else teacher_CV[block].float()
        weights_R = weights_C[block]
        loss_R, gradient_RV, extras = objective(student_RV, teacher_RV, targets_C[block])
        sums.add(_LOSS, (loss_R * weights_R).sum())
        for name, value_R in extras.items():
            sums.add(name, (value_R * weights_R).sum())
        logit_sums.add("student", student_RV.sum())
        if teacher_RV is not None:
            logit_sums.add("teacher", teacher_RV.sum())
        student_CV[block] = gradient_RV.mul_((weights_R / denominator)[:, None])
    return student_CV


def _add_weight_gradient(total_VD: Tensor, gradient_CV: Tensor, hidden_CD: Tensor, *, first: bool) -> None:
    """`total += gradient^T hidden` in float32; the first chunk's product starts it."""
    if gradient_CV.dtype is torch.float32:
        total_VD.addmm_(gradient_CV.t(), hidden_CD, beta=0.0 if first else 1.0)
        return
    # Products of a low precision are rounded to it, so what they are added to must not be: a slab at a time, because
    # all of them at once would be another copy of the head.
    for rows in chunks(len(total_VD), _WEIGHT_ROWS):
        product_RD = torch.mm(gradient_CV[:, rows].t(), hidden_CD)
        if first:
            total_VD[rows] = product_RD
        else:
            total_VD[rows] += product_RD


class _FusedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_ND: Tensor,
        weight_WD: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        objective: Objective,
        teacher: TeacherHead | None,
        vocabulary: int,
        denominator: float,
        chunk_tokens: int,
        compute_dtype: torch.dtype,
        sums: _Sums,
        logit_sums: _Sums,
    ) -> Tensor:
        head_VD = weight_WD[:vocabulary].to(compute_dtype)
        teacher_head_VE = None if teacher is None else teacher.weight_WE[:vocabulary].to(compute_dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
        grad_weight_WD = torch.empty_like(weight_WD, dtype=torch.float32) if needs_weight else None
        valid_N = weights_N.nonzero().squeeze(1)
        sums.add(_LOSS, weights_N.new_zeros(()))
        # One buffer a side for all chunks: fresh memory of this size costs as much as a pass over it.
        shape = min(chunk_tokens, len(valid_N)), vocabulary
        student_buffer_CV = hidden_ND.new_empty(shape, dtype=compute_dtype)
        teacher_buffer_CV = None if teacher is None else torch.empty_like(student_buffer_CV)
        for part in chunks(len(valid_N), chunk_tokens):
            rows_C = valid_N[part]
            hidden_CD = hidden_ND[rows_C].to(compute_dtype)
            teacher_logits_CV = None
            if teacher is not None and teacher_head_VE is not None and teacher_buffer_CV is not None:
                teacher_hidden_CE = teacher.hidden_NE[rows_C].to(compute_dtype)
                teacher_logits_CV = head_product(teacher_hidden_CE, teacher_head_VE, teacher_buffer_CV[: len(rows_C)])
            gradient_CV = _evaluate(
                objective,
                head_product(hidden_CD, head_VD, student_buffer_CV[: len(rows_C)]),
                teacher_logits_CV,
                targets_N[rows_C],
                weights_N[rows_C],
                denominator,
                sums,
                logit_sums,
            )
            if grad_hidden_ND is not None:
                grad_hidden_ND[rows_C] = torch.mm(gradient_CV, head_VD).to(hidden_ND.dtype)
            if grad_weight_WD is not None:
                _add_weight_gradient(grad_weight_WD[:vocabulary], gradient_CV, hidden_CD, first=part.start == 0)
        if grad_weight_WD is not None:
            # Rows that no product has written: the padding, and all of them where no token counts.
            grad_weight_WD[vocabulary if len(valid_N) else 0 :] = 0.0
            grad_weight_WD = grad_weight_WD.to(weight_WD.dtype)
        ctx.gradients = grad_hidden_ND, grad_weight_WD
        return (sums.pop(_LOSS) / denominator).float()

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
        return *gradients, *([None] * 10)


def fused_linear_loss(
    hidden_ND: Tensor,
    weight_WD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    objective: Objective,
    *,
    vocabulary: int,
    denominator: float,
    teacher: TeacherHead | None = None,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    compute_dtype: torch.dtype = torch.float32,
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
        chunk_tokens: tokens whose logits exist at one time.
        compute_dtype: dtype of the matrix products; values and softmax are float32.

    Returns:
        The loss and the objective's further sums. With no valid token the loss and every gradient are 0. Its backward
        pass can be run once.
    """
    sums, logit_sums = _Sums(weights_N), _Sums(weights_N)
    loss: Tensor = _FusedLinearLoss.apply(  # pyright: ignore[reportAssignmentType]
        hidden_ND,
        weight_WD,
        targets_N,
        weights_N,
        objective,
        teacher,
        vocabulary,
        denominator,
        chunk_tokens,
        compute_dtype,
        sums,
        logit_sums,
    )
    return LinearLoss(loss=loss, sums=dict(sums), logit_sums=dict(logit_sums))
