"""TAID's loss over a chunk of logits as one Triton kernel: both logit rows in, values and gradient out.

One program handles one token and reads its two rows three times, the second and third time from the GPU's cache if
they fit: normaliser and mean tilt, the sums over the target, the gradient. The arithmetic is that of
`common.divergences.tilted_cross_entropy`, its reference in the tests; forward KL is the case t = 1. Imported only for
`--loss-pass triton`: Triton comes with torch's CUDA builds and needs a C compiler.
"""

# Kernels are Triton's language, which has no types.
# pyright: basic, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false, reportMissingImports=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.chunk_passes import ChunkValues, InPlace
from common.divergences import LARGEST_EXPONENT

_BLOCK = 2048
_SUMS = 8


@triton.jit
def _expm1(x):  # exp(x) - 1 keeps no digits of a small x, and the device's fast logarithm none near 1.
    series = 1.0 + x / 8.0
    series = 1.0 + x / 7.0 * series
    series = 1.0 + x / 6.0 * series
    series = 1.0 + x / 5.0 * series
    series = 1.0 + x / 4.0 * series
    series = 1.0 + x / 3.0 * series
    series = 1.0 + x / 2.0 * series
    return tl.where(tl.abs(x) < 0.5, x * series, tl.exp(x) - 1.0)


@triton.jit
def _load(pointer, columns, vocabulary):
    return tl.load(pointer + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)


@triton.jit
def _softmaxes(student_ptr, teacher_ptr, t, vocabulary, BLOCK: tl.constexpr):
    """Largest logit and normaliser of student and target, with running maxima; the gap's mean under q; both sums."""
    low = -3.0e38
    student_top, target_top, gap_top = low, low, low
    student_norm = tl.zeros([BLOCK], dtype=tl.float32)
    target_norm = tl.zeros([BLOCK], dtype=tl.float32)
    gap_sum = tl.zeros([BLOCK], dtype=tl.float32)
    student_sum = tl.zeros([BLOCK], dtype=tl.float32)
    teacher_sum = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        student = _load(student_ptr, columns, vocabulary)
        teacher = _load(teacher_ptr, columns, vocabulary)
        student_sum += student
        teacher_sum += teacher
        gap = teacher - student
        target = student + t * gap
        gap_top = tl.maximum(gap_top, tl.max(tl.where(inside, gap, low), axis=0))
        top = tl.maximum(student_top, tl.max(tl.where(inside, student, low), axis=0))
        exponential = tl.where(inside, tl.exp(student - top), 0.0)
        shrink = tl.exp(student_top - top)
        student_norm = student_norm * shrink + exponential
        gap_sum = gap_sum * shrink + exponential * gap
        student_top = top
        top = tl.maximum(target_top, tl.max(tl.where(inside, target, low), axis=0))
        target_norm = target_norm * tl.exp(target_top - top) + tl.where(inside, tl.exp(target - top), 0.0)
        target_top = top
    student_total = tl.sum(student_norm, axis=0)
    mean_gap = tl.sum(gap_sum, axis=0) / student_total
    sums = tl.sum(student_sum, axis=0), tl.sum(teacher_sum, axis=0)
    return student_top, student_total, target_top, tl.sum(target_norm, axis=0), mean_gap, gap_top, sums[0], sums[1]


@triton.jit
def _target_sums(
    student_ptr, teacher_ptr, t, vocabulary, student_top, student_total, target_top, target_total, mean_gap, is_far,
    largest_exponent, BLOCK: tl.constexpr,
):  # fmt: skip
    """S, and the means of logits and r under the target, which is q exp(r), or where far a softmax of its own."""
    excess = tl.zeros([BLOCK], dtype=tl.float32)
    of_logits = tl.zeros([BLOCK], dtype=tl.float32)
    of_ratio = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        student = _load(student_ptr, columns, vocabulary)
        gap = _load(teacher_ptr, columns, vocabulary) - student
        shifted = student - student_top
        q = tl.where(inside, tl.exp(shifted), 0.0) / student_total
        r = t * (gap - mean_gap)
        own = student + t * gap - target_top
        gained = _expm1(tl.minimum(r, largest_exponent))
        p = tl.where(is_far, tl.where(inside, tl.exp(own), 0.0) / target_total, q * (1.0 + gained))
        excess += q * gained
        of_logits += p * shifted
        of_ratio += p * tl.where(is_far, own - shifted, r)
    return tl.sum(excess, axis=0), tl.sum(of_logits, axis=0), tl.sum(of_ratio, axis=0)


@triton.jit
def _token(
    student_ptr, teacher_ptr, scale_ptr, sums_ptr, t, vocabulary, student_stride, teacher_stride, largest_exponent,
    SUMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * student_stride
    teacher_ptr += row * teacher_stride
    student_top, student_total, target_top, target_total, mean_gap, gap_top, student_sum, teacher_sum = _softmaxes(
        student_ptr, teacher_ptr, t, vocabulary, BLOCK
    )
    is_far = t * (gap_top - mean_gap) > largest_exponent
    excess, of_logits, of_ratio = _target_sums(
        student_ptr, teacher_ptr, t, vocabulary, student_top, student_total, target_top, target_total, mean_gap, is_far,
        largest_exponent, BLOCK,
    )  # fmt: skip
    scale = tl.load(scale_ptr + row)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        student = _load(student_ptr, columns, vocabulary)
        gap = _load(teacher_ptr, columns, vocabulary) - student
        q = tl.exp(student - student_top) / student_total
        r = t * (gap - mean_gap)
        near = -q * (_expm1(tl.minimum(r, largest_exponent)) - excess) / (1.0 + excess)
        far = q - tl.exp(student + t * gap - target_top) / target_total
        gradient = tl.where(is_far, far, near) * scale
        tl.store(student_ptr + columns, gradient.to(student_ptr.dtype.element_ty), mask=columns < vocabulary)
    sums_ptr += row * SUMS
    tl.store(sums_ptr, student_total)
    tl.store(sums_ptr + 1, target_total)
    tl.store(sums_ptr + 2, excess)
    tl.store(sums_ptr + 3, of_logits)
    tl.store(sums_ptr + 4, of_ratio)
    tl.store(sums_ptr + 5, is_far.to(tl.float32))
    tl.store(sums_ptr + 6, student_sum)
    tl.store(sums_ptr + 7, teacher_sum)


def taid_in_place(t: float, *, loss_kind: str = "cross_entropy") -> InPlace:
    """TAID's objective at t as a pass over a chunk of logits whose rows are contiguous.

    Args:
        t: share of the teacher, 0 to 1; 1 is forward KL.
        loss_kind: "cross_entropy" or "kl", which of the two is the loss; the other is among the further values.
    """

    def run(student_CV: Tensor, teacher_CV: Tensor | None, targets_C: Tensor, scale_C: Tensor) -> ChunkValues:
        assert teacher_CV is not None and student_CV.stride(1) == teacher_CV.stride(1) == 1
        sums_CS = torch.zeros(len(student_CV), _SUMS, device=student_CV.device, dtype=torch.float32)
        if len(student_CV):
            _token[(len(student_CV),)](
                student_CV,
                teacher_CV,
                scale_C.contiguous(),
                sums_CS,
                t,
                student_CV.size(1),
                student_CV.stride(0),
                teacher_CV.stride(0),
                LARGEST_EXPONENT,
                SUMS=_SUMS,
                BLOCK=_BLOCK,
                num_warps=8,
            )
        return _values(sums_CS, loss_kind)

    return InPlace(run=run)


def _values(sums_CS: Tensor, loss_kind: str) -> ChunkValues:
    """What `_token` summed up, finished where logarithms are exact."""
    student_norm, target_norm, excess, of_logits, of_ratio, is_far, student_sum, teacher_sum = sums_CS.unbind(1)
    mass = torch.where(is_far > 0, 1.0, 1.0 + excess)
    cross_entropy_C = student_norm.log() - of_logits / mass
    kl_C = of_ratio / mass + torch.where(is_far > 0, (student_norm / target_norm).log(), -excess.log1p())
    loss_C, name, other_C = (
        (kl_C, "cross_entropy", cross_entropy_C) if loss_kind == "kl" else (cross_entropy_C, "kl", kl_C)
    )
    return ChunkValues(loss_C, {name: other_C}, student_sum, teacher_sum)
