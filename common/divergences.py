"""Divergences between next-token distributions: the value and its gradient at the student's logits, in float32.

Pure functions of one chunk of logits that do not modify their arguments. Legend: N tokens of the chunk, V shared
vocabulary; q = softmax(student's logits), p = softmax(teacher's logits), held constant. Every function returns the
per-token value in nats and its gradient with respect to the student's logits; `common.fused_linear_loss` weighs the
tokens. A divergence is 0 where q = p, and negative only by rounding.

Gradients follow from `d q(u) / d z(v) = q(u) (1[u = v] - q(v))`: a value with `g(v) = d value / d q(v)` has the
gradient `q * (g - sum_u q(u) g(u))`, in which any constant in g drops out.

Two rules keep digits over 150,000 ids. Probabilities and log q - log p come from logits less their largest and from
the normalisers, not from two log-softmaxes, whose roundings grow with |log q|. And every KL(a || b) is summed as
`a (log a - log b) + (b - a)`: the second part sums to 0, and with it a rounding of the two normalisers, which shifts
all of log a or log b at once, cancels to first order. So the value keeps its digits near a = b, where it is tiny.
"""

import math

import torch
from torch import Tensor

LARGEST_EXPONENT = 40.0
"""exp(40) is 2e17: beyond it only ids with a q below 1e-38 / 2e17 are lost."""


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of one target id (int64) per token, and its gradient `softmax(z) - onehot(target)`."""
    shifted_NV, gradient_NV, norm_N1 = _exponentials(logits_NV)
    loss_N = (norm_N1.log() - shifted_NV.gather(1, targets_N[:, None])).squeeze(1)
    gradient_NV.div_(norm_N1)
    gradient_NV.scatter_add_(1, targets_N[:, None], gradient_NV.new_full((len(targets_N), 1), -1.0))
    return loss_N, gradient_NV


def log_softmax(logits_NV: Tensor) -> Tensor:
    """log q. torch's own sums the exponentials one by one: over 150,000 ids only four digits are right."""
    shifted_NV, _, norm_N1 = _exponentials(logits_NV)
    return shifted_NV.sub_(norm_N1.log())


def soft_cross_entropy(student_NV: Tensor, target_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy `-sum p log q` towards p = softmax(target logits), and KL(p || q), smaller by p's entropy.

    Returns cross_entropy_N, kl_N and their gradient_NV: both have the same, `q - p`, because p is held constant.
    """
    return tilted_cross_entropy(student_NV, target_NV - student_NV)


def tilted_cross_entropy(student_NV: Tensor, tilt_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`soft_cross_entropy` towards the target logits `student + tilt`, exact for a tilt of any size down to 0.

    As a difference of two softmaxes q - p would be a small number made of large ones. With r = tilt minus its mean
    under q, `p = q exp(r) / (1 + S)` with `S = sum q (exp(r) - 1)`: `q - p = -q (exp(r) - 1 - S) / (1 + S)`.
    Overwrites `tilt_NV`; returns cross_entropy_N, kl_N, gradient_NV.
    """
    shifted_NV, q_NV, norm_N1 = _exponentials(student_NV)
    q_NV.div_(norm_N1)
    r_NV = tilt_NV.sub_((q_NV * tilt_NV).sum(-1, keepdim=True))
    # exp(r) would overflow, or meet a q rounded to 0. Then the softmaxes are far apart, and their difference is exact.
    is_far_N = r_NV.amax(-1) > LARGEST_EXPONENT
    compiling = torch.compiler.is_compiling()
    if not compiling and bool(is_far_N.any()):
        return _far_cross_entropy(shifted_NV, r_NV)
    far = _far_cross_entropy(shifted_NV, r_NV) if compiling else None
    excess_NV = r_NV.expm1()
    excess_N1 = (q_NV * excess_NV).sum(-1, keepdim=True)
    gradient_NV = excess_NV.sub_(excess_N1).mul_(q_NV).div_(-1.0 - excess_N1)
    p_NV = q_NV.sub_(gradient_NV)
    kl_N = r_NV.mul_(p_NV).sum(-1).sub_(excess_N1.log1p().squeeze(-1))
    cross_entropy_N = norm_N1.log().squeeze(-1).sub_(shifted_NV.mul_(p_NV).sum(-1))
    if far is None:
        return cross_entropy_N, kl_N, gradient_NV
    # A compiled function does not branch on data: each row takes the form that suits it.
    return (
        torch.where(is_far_N, far[0], cross_entropy_N),
        torch.where(is_far_N, far[1], kl_N),
        torch.where(is_far_N[:, None], far[2], gradient_NV),
    )


def _far_cross_entropy(student_NV: Tensor, tilt_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`tilted_cross_entropy` by two softmaxes."""
    student_shifted_NV, q_NV, student_norm_N1 = _exponentials(student_NV)
    target_shifted_NV, p_NV, target_norm_N1 = _exponentials(student_NV + tilt_NV)
    p_NV.div_(target_norm_N1)
    cross_entropy_N = student_norm_N1.log().squeeze(-1) - (p_NV * student_shifted_NV).sum(-1)
    p_over_q_NV = target_shifted_NV.sub_(student_shifted_NV).add_(_log_quotient(student_norm_N1, target_norm_N1))
    gradient_NV = q_NV.div_(student_norm_N1).sub_(p_NV)
    return cross_entropy_N, p_over_q_NV.mul_(p_NV).add_(gradient_NV).sum(-1), gradient_NV


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor]:
    """`KL(q || p) = sum q (log q - log p)`."""
    q_NV, p_NV, q_over_p_NV = _compared(student_NV, teacher_NV)
    return _kl_sum(q_NV, q_over_p_NV, p_NV), _through_softmax(q_NV, q_over_p_NV)


def jensen_shannon(student_NV: Tensor, teacher_NV: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """`beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q` (GKD, arXiv 2306.13649, eq. 1).

    beta is between 0 and 1, both excluded. The value tends to beta times the forward KL for a small beta, and to
    1 - beta times the reverse KL for one near 1.
    """
    q_NV, p_NV, q_over_p_NV = _compared(student_NV, teacher_NV)
    p_over_m_NV = _log_over_mixture(q_over_p_NV, share=beta)
    q_over_m_NV = _log_over_mixture(q_over_p_NV.neg_(), share=1.0 - beta)
    m_NV = torch.lerp(q_NV, p_NV, beta)
    loss_N = beta * _kl_sum(p_NV, p_over_m_NV, m_NV) + (1.0 - beta) * _kl_sum(q_NV, q_over_m_NV, m_NV)
    return loss_N, _through_softmax(q_NV, q_over_m_NV.mul_(1.0 - beta))


def total_variation(student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor]:
    """`1/2 sum |p - q|`, between 0 and 1; where q = p exactly its subgradient 0 is taken."""
    q_NV, p_NV = (exponentials.div_(norm) for _, exponentials, norm in map(_exponentials, (student_NV, teacher_NV)))
    difference_NV = q_NV - p_NV
    loss_N = 0.5 * difference_NV.abs().sum(-1)
    return loss_N, _through_softmax(q_NV, difference_NV.sign_().mul_(0.5))


def skew_forward_kl(student_NV: Tensor, teacher_NV: Tensor, *, skew: float) -> tuple[Tensor, Tensor]:
    """`KL(p || skew p + (1 - skew) q)` (DistiLLM, arXiv 2402.03898), skew from 0 to below 1; 0 is the forward KL."""
    q_NV, p_NV, q_over_p_NV = _compared(student_NV, teacher_NV)
    p_over_m_NV = _log_over_mixture(q_over_p_NV, share=skew)
    loss_N = _kl_sum(p_NV, p_over_m_NV, torch.lerp(q_NV, p_NV, skew))
    # q p / m as p times q / m, which is at most 1 / (1 - skew): where both are tiny, p / m may overflow.
    pull_NV = p_over_m_NV.add_(q_over_p_NV).exp_().mul_(p_NV).mul_(1.0 - skew)
    return loss_N, q_NV.mul_(pull_NV.sum(-1, keepdim=True)).sub_(pull_NV)


def skew_reverse_kl(student_NV: Tensor, teacher_NV: Tensor, *, skew: float) -> tuple[Tensor, Tensor]:
    """`KL(q || (1 - skew) p + skew q)` (DistiLLM, arXiv 2402.03898), skew from 0 to below 1; 0 is the reverse KL."""
    q_NV, p_NV, q_over_p_NV = _compared(student_NV, teacher_NV)
    q_over_m_NV = _log_over_mixture(q_over_p_NV.neg_(), share=skew)
    loss_N = _kl_sum(q_NV, q_over_m_NV, torch.lerp(p_NV, q_NV, skew))
    # q / m is at most 1 / skew, so its exponential is safe.
    return loss_N, _through_softmax(q_NV, q_over_m_NV - q_over_m_NV.exp().mul_(skew) if skew else q_over_m_NV)


def _exponentials(logits_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits less each row's largest, their exponentials, and the sum of these, [N, 1]."""
    shifted_NV = logits_NV - logits_NV.amax(-1, keepdim=True)
    exponentials_NV = shifted_NV.exp()
    return shifted_NV, exponentials_NV, exponentials_NV.sum(-1, keepdim=True)


def _compared(student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, p and log q - log p."""
    student_shifted_NV, q_NV, student_norm_N1 = _exponentials(student_NV)
    teacher_shifted_NV, p_NV, teacher_norm_N1 = _exponentials(teacher_NV)
    q_over_p_NV = student_shifted_NV.sub_(teacher_shifted_NV).sub_(_log_quotient(student_norm_N1, teacher_norm_N1))
    return q_NV.div_(student_norm_N1), p_NV.div_(teacher_norm_N1), q_over_p_NV


def _log_quotient(a: Tensor, b: Tensor) -> Tensor:
    """log(a / b), exact to the last digits where a is almost b."""
    difference = a - b
    return torch.log1p(difference.abs() / torch.minimum(a, b)).mul_(difference.sign())


def _log_over_mixture(log_b_over_a_NV: Tensor, *, share: float) -> Tensor:
    """`log(a / (share a + (1 - share) b))`, from log(b / a); of size 1 where a matters, for logits of any size."""
    if share == 0.0:
        return -log_b_over_a_NV
    if share == 1.0:
        return torch.zeros_like(log_b_over_a_NV)
    log_share = log_b_over_a_NV.new_full((), math.log(share))
    log_mixture_NV = torch.logaddexp(log_share, log_b_over_a_NV + math.log1p(-share))
    # Where b is almost a the logarithm is that of a number near 1.
    near_NV = log_b_over_a_NV.clamp(-1.0, 1.0)
    return torch.where(near_NV == log_b_over_a_NV, near_NV.expm1().mul_(1.0 - share).log1p_(), log_mixture_NV).neg_()


def _kl_sum(a_NV: Tensor, log_ratio_NV: Tensor, b_NV: Tensor) -> Tensor:
    """KL(a || b) from a, log a - log b and b."""
    return (b_NV - a_NV).addcmul_(a_NV, log_ratio_NV).sum(-1)


def _through_softmax(q_NV: Tensor, slope_NV: Tensor) -> Tensor:
    """The gradient at the logits from the derivative with respect to q; `slope_NV` is overwritten."""
    # Relative to the likeliest id's slope: where q is almost 1 the mean would cancel the digits that matter.
    slope_NV.sub_(slope_NV.gather(1, q_NV.argmax(-1, keepdim=True)))
    return slope_NV.sub_((q_NV * slope_NV).sum(-1, keepdim=True)).mul_(q_NV)
