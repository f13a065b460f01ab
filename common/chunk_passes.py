"""An objective over one chunk of logits: losses are summed, and the weighted gradient overwrites the student's logits.

An objective is a pure function of logits. A pass runs it over a chunk in the way that suits the device: in blocks that
stay in the cache (CPU), in kernels that a compiler makes of the whole objective (CUDA), or whole and eagerly. An
objective with a kernel of its own is its own pass, an `InPlace`. Legend: C tokens of the chunk, V vocabulary, R rows of
one block.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

_BLOCK_LOGITS = 2**20
"""Logits of a block on a CPU: 4 MiB of float32, so that a block's few temporaries fit in the last-level cache."""

LOSS = ""
"""The loss itself among the sums; no objective has a value of this name."""

PassName = Literal["blocks", "whole", "compiled"]


ChunkResult = tuple[Tensor, Tensor, dict[str, Tensor]]
"""loss_C, gradient_CV at the student's logits, and further per-token values to be averaged."""
Objective = Callable[[Tensor, Tensor | None, Tensor], ChunkResult]
"""(student_logits_CV, teacher_logits_CV, targets_C) to per-token losses and gradient."""


class ChunkValues(NamedTuple):
    """What a pass returns besides the gradient, per token and in float32."""

    loss_C: Tensor
    extras: dict[str, Tensor]
    """The objective's further values by name."""
    student_sum_C: Tensor
    """Sum over a token's logits: not finite where one of them is inf or NaN."""
    teacher_sum_C: Tensor | None


ChunkPass = Callable[[Tensor, Tensor | None, Tensor, Tensor], ChunkValues]
"""(student_CV, teacher_CV, targets_C, scale_C) to values; student_CV becomes the gradient, each row scaled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InPlace:
    """An objective that is a pass by itself."""

    run: ChunkPass


class Sums(dict[str, Tensor]):
    """Scalar sums by name, in float64 where the device supports it."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self._zero = like.new_zeros((), dtype=torch.float64 if like.device.type != "mps" else torch.float32)

    def add(self, name: str, value: Tensor) -> None:
        """Add the scalar `value` to the sum `name`."""
        self[name] = self.get(name, self._zero) + value.to(self._zero.dtype)


def chunks(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    """Consecutive slices of at most `chunk_tokens` tokens."""
    for start in range(0, num_tokens, chunk_tokens):
        yield slice(start, min(start + chunk_tokens, num_tokens))


def default_pass(device: torch.device) -> PassName:
    """Blocks on a CPU, compiled on CUDA where a compiler works, else whole."""
    if device.type == "cpu":
        return "blocks"
    return "compiled" if device.type == "cuda" and _compiler_works(device) else "whole"


def evaluate(
    objective: Objective | InPlace,
    student_CV: Tensor,
    teacher_CV: Tensor | None,
    targets_C: Tensor,
    weights_C: Tensor,
    *,
    denominator: float,
    sums: Sums,
    logit_sums: Sums,
    name: PassName,
) -> Tensor:
    """Add a chunk's weighted losses to the sums; `student_CV` becomes, in place, the gradient of loss / denominator.

    An `InPlace` runs over the whole chunk, whatever `name` is; any other objective is run by the pass of this name.
    """
    rows = len(student_CV)
    if isinstance(objective, InPlace):
        run = objective.run
    else:
        run = functools.partial(_compiled() if name == "compiled" else _run, objective)
        rows = max(1, _BLOCK_LOGITS // student_CV.size(1)) if name == "blocks" else rows
    for block in list(chunks(len(student_CV), max(1, rows))) or [slice(0, 0)]:
        weights_R = weights_C[block]
        values = run(
            student_CV[block],
            None if teacher_CV is None else teacher_CV[block],
            targets_C[block],
            weights_R / denominator,
        )
        sums.add(LOSS, (values.loss_C * weights_R).sum())
        for extra, value_R in values.extras.items():
            sums.add(extra, (value_R * weights_R).sum())
        logit_sums.add("student", values.student_sum_C.sum())
        if values.teacher_sum_C is not None:
            logit_sums.add("teacher", values.teacher_sum_C.sum())
    return student_CV


def _run(
    objective: Objective, student_CV: Tensor, teacher_CV: Tensor | None, targets_C: Tensor, scale_C: Tensor
) -> ChunkValues:
    """Any objective as a pass."""
    student_float_CV = student_CV.float()
    teacher_float_CV = None if teacher_CV is None else teacher_CV.float()
    loss_C, gradient_CV, extras = objective(student_float_CV, teacher_float_CV, targets_C)
    student_sum_C = student_float_CV.sum(-1)
    teacher_sum_C = None if teacher_float_CV is None else teacher_float_CV.sum(-1)
    student_CV.copy_(gradient_CV.mul_(scale_C[:, None]))
    return ChunkValues(loss_C, extras, student_sum_C, teacher_sum_C)


@functools.cache
def _compiled() -> Callable[..., ChunkValues]:
    """`_run`, compiled; other numbers in the objective, such as TAID's t, need no new compilation."""
    return torch.compile(_run)


@functools.cache
def _compiler_works(device: torch.device) -> bool:
    """Whether torch can compile for `device`: it needs Triton, and Triton needs a C compiler."""

    def add(a: Tensor, b: Tensor) -> Tensor:
        return a + b

    one: Any = torch.ones(1, device=device)
    try:
        return float(torch.compile(add)(one, one)) == 2.0
    except Exception as error:  # of any kind: the loss also runs without
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        warnings.warn(f"the loss is not compiled and so slower: {reason}", stacklevel=2)
        return False
