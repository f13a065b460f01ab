"""Every distillation objective: pure functions of one chunk of logits.

An objective takes the student's logits, the teacher's logits and the next-token ids of one chunk and returns
per-token values, their gradient at the student's logits and further per-token values for the log.
`common.fused_linear_loss` calls it. A method is one function here and one line in `METHODS`. Legend: C tokens of the
chunk, V shared vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.divergences import cross_entropy, entropy, soft_cross_entropy
from common.errors import UserError
from common.fused_linear_loss import Objective
from distill.taid import target_probs

ChunkResult = tuple[Tensor, Tensor, dict[str, Tensor]]


def cross_entropy_objective(student_CV: Tensor, teacher_CV: Tensor | None, targets_C: Tensor) -> ChunkResult:
    """The language-modelling loss on the text itself; needs no teacher."""
    loss_C, gradient_CV = cross_entropy(student_CV, targets_C)
    return loss_C, gradient_CV, {}


def forward_kl_objective(student_CV: Tensor, teacher_CV: Tensor | None, targets_C: Tensor) -> ChunkResult:
    """KL(teacher || student), the teacher's entropy subtracted; `cross_entropy` in the log is the value before that."""
    assert teacher_CV is not None
    probs_CV = torch.softmax(teacher_CV, dim=-1)
    loss_C, gradient_CV = soft_cross_entropy(student_CV, probs_CV)
    return loss_C - entropy(probs_CV), gradient_CV, {"cross_entropy": loss_C}


def taid_objective(student_CV: Tensor, teacher_CV: Tensor | None, targets_C: Tensor, *, t: float) -> ChunkResult:
    """Cross-entropy towards the intermediate distribution; `kl` in the log has its entropy subtracted."""
    assert teacher_CV is not None
    probs_CV = target_probs(student_CV, teacher_CV, t)
    loss_C, gradient_CV = soft_cross_entropy(student_CV, probs_CV)
    return loss_C, gradient_CV, {"kl": loss_C - entropy(probs_CV)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """What the training loop must know of a method."""

    objective: Callable[[float], Objective]
    """Makes the step's objective from the interpolation coefficient; methods without one ignore it."""
    needs_teacher: bool
    interpolates: bool = False
    """True: the loop keeps a TAID state and passes its t."""


def _taid_at(t: float) -> Objective:
    def objective(student_logits_CV: Tensor, teacher_logits_CV: Tensor | None, targets_C: Tensor) -> ChunkResult:
        return taid_objective(student_logits_CV, teacher_logits_CV, targets_C, t=t)

    return objective


def _constant(objective: Callable[[Tensor, Tensor | None, Tensor], ChunkResult]) -> Callable[[float], Objective]:
    def at(t: float) -> Objective:
        def bound(student_logits_CV: Tensor, teacher_logits_CV: Tensor | None, targets_C: Tensor) -> ChunkResult:
            return objective(student_logits_CV, teacher_logits_CV, targets_C)

        return bound

    return at


METHODS: dict[str, Method] = {
    "cross_entropy": Method(objective=_constant(cross_entropy_objective), needs_teacher=False),
    "forward_kl": Method(objective=_constant(forward_kl_objective), needs_teacher=True),
    "taid": Method(objective=_taid_at, needs_teacher=True, interpolates=True),
}


def method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        UserError: unknown name.
    """
    if name not in METHODS:
        raise UserError(
            wanted=f"a method out of {', '.join(sorted(METHODS))}", got=repr(name), next_step="name one of these"
        )
    return METHODS[name]
