"""The output head and a loss in one chunked pass: no tensor of shape [all tokens, vocabulary] is ever made.

For each chunk of tokens the head's product gives logits, an objective gives value and gradient at those logits, and
two products carry the gradient to the hidden states and to the head's weight, all in the forward pass; the backward
pass only hands the finished gradients on. The weight's gradient is accumulated in float32. Tokens of weight 0 are
left out before any product. Both heads are cropped to the shared vocabulary before the softmax, so that padded rows
carry no mass.

The module holds the chunking and the products. It names no objective: cross-entropy comes from `common.divergences`,
the distillation objectives from `distill.objectives`. Legend: N tokens, V shared vocabulary, D and E hidden sizes of
student and teacher, C tokens of one chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

DEFAULT_CHUNK_TOKENS = 1024
"""Tokens of a chunk: 1,024 x 151,665 float32 logits are 0.58 GiB."""


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
    """

    loss: Tensor
    sums: dict[str, Tensor]


def chunks(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    """Consecutive slices of at most `chunk_tokens` tokens."""
    for start in range(0, num_tokens, chunk_tokens):
        yield slice(start, min(start + chunk_tokens, num_tokens))


def _product(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """Logits in float32, the product itself in the dtype of its inputs."""
    return torch.mm(hidden_CD, weight_VD.t()).float()


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
        sums: dict[str, Tensor],
    ) -> Tensor:
        head_VD = weight_WD[:vocabulary].to(compute_dtype)
        teacher_head_VE = None if teacher is None else teacher.weight_WE[:vocabulary].to(compute_dtype)
        grad_hidden_ND = torch.zeros_like(hidden_ND)
        grad_weight_WD = torch.zeros_like(weight_WD, dtype=torch.float32)
        total = hidden_ND.new_zeros((), dtype=torch.float64 if hidden_ND.device.type != "mps" else torch.float32)
        valid_N = weights_N.nonzero().squeeze(1)
        for part in chunks(len(valid_N), chunk_tokens):
            rows_C = valid_N[part]
            hidden_CD = hidden_ND[rows_C].to(compute_dtype)
            teacher_logits_CV = None
            if teacher is not None and teacher_head_VE is not None:
                teacher_logits_CV = _product(teacher.hidden_NE[rows_C].to(compute_dtype), teacher_head_VE)
            weights_C = weights_N[rows_C]
            loss_C, gradient_CV, extras = objective(_product(hidden_CD, head_VD), teacher_logits_CV, targets_N[rows_C])
            total += (loss_C * weights_C).sum()
            for name, value_C in extras.items():
                sums[name] = sums.get(name, torch.zeros_like(total)) + (value_C * weights_C).sum()
            gradient_CV *= (weights_C / denominator)[:, None]
            gradient_CV = gradient_CV.to(compute_dtype)
            grad_hidden_ND[rows_C] = torch.mm(gradient_CV, head_VD).to(hidden_ND.dtype)
            if compute_dtype is torch.float32:
                grad_weight_WD[:vocabulary].addmm_(gradient_CV.t(), hidden_CD)
            else:
                grad_weight_WD[:vocabulary] += torch.mm(gradient_CV.t(), hidden_CD)
        ctx.save_for_backward(grad_hidden_ND, grad_weight_WD.to(weight_WD.dtype))
        return (total / denominator).float()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (grad_output,) = grad_outputs
        grad_hidden_ND, grad_weight_WD = ctx.saved_tensors
        return grad_hidden_ND * grad_output, grad_weight_WD * grad_output, *([None] * 9)


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
        The loss and the objective's further sums. With no valid token the loss and every gradient are 0.
    """
    sums: dict[str, Tensor] = {}
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
    )
    return LinearLoss(loss=loss, sums=sums)
