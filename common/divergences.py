"""Divergences between next-token distributions: the value and its gradient at the student's logits, in float32.

Pure functions of one chunk of logits that change nothing they are given. Legend: N tokens of the chunk, V shared
vocabulary; q = softmax(student's logits), p = softmax(teacher's logits), held constant. Every function returns the
per-token value in nats and the gradient of that value with respect to the student's logits; nothing is averaged or
masked here, `common.fused_linear_loss` weighs the tokens. A divergence is 0 where q = p, and never negative but for
rounding. This module knows no teacher model, no method's name and no device.

Gradients follow from `d q(u) / d z(v) = q(u) (1[u = v] - q(v))`: a value with `g(v) = d value / d q(v)` has the
gradient `q * (g - sum_u q(u) g(u))`, in which any constant in g drops out.

Every KL(a || b) is summed as `a (log a - log b) + (b - a)`. The second part sums to 0, and with it a rounding of the
two normalisers, which shifts all of log a or log b at once, cancels to first order: near a = b, where the value is
tiny, it keeps its digits.
"""

import math

import torch
from torch import Tensor


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of one target id per token.

    Args:
        logits_NV: the student's logits, float32.
        targets_N: target ids, int64.

    Returns:
        loss_N in nats, and its gradient `softmax(z) - onehot(target)`, both float32.
    """
    log_q_NV = torch.log_softmax(logits_NV, dim=-1)
    loss_N = -log_q_NV.gather(1, targets_N[:, None]).squeeze(1)
    gradient_NV = log_q_NV.exp_()
    gradient_NV.scatter_add_(1, targets_N[:, None], gradient_NV.new_full((len(targets_N), 1), -1.0))
    return loss_N, gradient_NV


def soft_cross_entropy(student_NV: Tensor, target_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy `-sum p log q` towards p = softmax(target logits), and KL(p || q), which is less by p's entropy.

    Both have the same gradient, `q - p`, because p is held constant.

    Returns:
        cross_entropy_N, kl_N, gradient_NV.
    """
    log_q_NV = torch.log_softmax(student_NV, dim=-1)
    log_p_NV = torch.log_softmax(target_NV, dim=-1)
    p_NV = log_p_NV.exp()
    cross_entropy_N = -(p_NV * log_q_NV).sum(-1)
    terms_NV = log_p_NV.sub_(log_q_NV).mul_(p_NV)
    gradient_NV = log_q_NV.exp_().sub_(p_NV)
    return cross_entropy_N, terms_NV.add_(gradient_NV).sum(-1), gradient_NV


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor]:
    """`KL(q || p) = sum q (log q - log p)`."""
    log_q_NV = torch.log_softmax(student_NV, dim=-1)
    log_p_NV = torch.log_softmax(teacher_NV, dim=-1)
    ratio_NV = log_q_NV - log_p_NV
    q_NV = log_q_NV.exp_()
    return _kl_sum(q_NV, ratio_NV, log_p_NV.exp_()), _through_softmax(q_NV, ratio_NV)


def jensen_shannon(student_NV: Tensor, teacher_NV: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """`beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q` (GKD, arXiv 2306.13649, eq. 1).

    Args:
        beta: share of the teacher in m, between 0 and 1, both excluded. The value tends to beta times the forward KL
            for a small beta, and to 1 - beta times the reverse KL for one near 1.
    """
    log_q_NV = torch.log_softmax(student_NV, dim=-1)
    log_p_NV = torch.log_softmax(teacher_NV, dim=-1)
    difference_NV = log_q_NV - log_p_NV
    p_over_m_NV = _log_over_mixture(difference_NV, share=beta)
    q_over_m_NV = _log_over_mixture(difference_NV.neg_(), share=1.0 - beta)
    q_NV, p_NV = log_q_NV.exp_(), log_p_NV.exp_()
    m_NV = torch.lerp(q_NV, p_NV, beta)
    loss_N = beta * _kl_sum(p_NV, p_over_m_NV, m_NV) + (1.0 - beta) * _kl_sum(q_NV, q_over_m_NV, m_NV)
    return loss_N, _through_softmax(q_NV, q_over_m_NV.mul_(1.0 - beta))


def total_variation(student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor]:
    """`1/2 sum |p - q|`, between 0 and 1; where q = p exactly its subgradient 0 is taken."""
    q_NV = torch.softmax(student_NV, dim=-1)
    difference_NV = q_NV - torch.softmax(teacher_NV, dim=-1)
    loss_N = 0.5 * difference_NV.abs().sum(-1)
    return loss_N, _through_softmax(q_NV, difference_NV.sign_().mul_(0.5))


def skew_forward_kl(student_NV: Tensor, teacher_NV: Tensor, *, skew: float) -> tuple[Tensor, Tensor]:
    """`KL(p || skew p + (1 - skew) q)` (DistiLLM, arXiv 2402.03898); skew 0 is the forward KL.

    Args:
        skew: share of the teacher in the second distribution, 0 to below 1.
    """
    log_q_NV = torch.log_softmax(student_NV, dim=-1)
    log_p_NV = torch.log_softmax(teacher_NV, dim=-1)
    p_over_m_NV = _log_over_mixture(log_q_NV - log_p_NV, share=skew)
    p_NV, q_NV = log_p_NV.exp_(), log_q_NV.exp()
    loss_N = _kl_sum(p_NV, p_over_m_NV, torch.lerp(q_NV, p_NV, skew))
    # q p / m in log space: where p and q are both tiny, p / m alone may overflow.
    pull_NV = p_over_m_NV.add_(log_q_NV).exp_().mul_(1.0 - skew)
    return loss_N, q_NV.mul_(pull_NV.sum(-1, keepdim=True)).sub_(pull_NV)


def skew_reverse_kl(student_NV: Tensor, teacher_NV: Tensor, *, skew: float) -> tuple[Tensor, Tensor]:
    """`KL(q || (1 - skew) p + skew q)` (DistiLLM, arXiv 2402.03898); skew 0 is the reverse KL.

    Args:
        skew: share of the student in the second distribution, 0 to below 1.
    """
    log_q_NV = torch.log_softmax(student_NV, dim=-1)
    log_p_NV = torch.log_softmax(teacher_NV, dim=-1)
    q_over_m_NV = _log_over_mixture(log_p_NV - log_q_NV, share=skew)
    p_NV, q_NV = log_p_NV.exp_(), log_q_NV.exp_()
    loss_N = _kl_sum(q_NV, q_over_m_NV, torch.lerp(p_NV, q_NV, skew))
    # q / m is at most 1 / skew, so its exponential is safe.
    return loss_N, _through_softmax(q_NV, q_over_m_NV - q_over_m_NV.exp().mul_(skew) if skew else q_over_m_NV)


def _log_over_mixture(log_b_over_a_NV: Tensor, *, share: float) -> Tensor:
    """`log(a / (share a + (1 - share) b))`, from log(b / a): of size 1 where a matters, for logits of any size."""
    if share == 0.0:
        return -log_b_over_a_NV
    log_share = log_b_over_a_NV.new_tensor(math.log(share))
    return torch.logaddexp(log_share, log_b_over_a_NV + math.log1p(-share)).neg_()


def _kl_sum(a_NV: Tensor, log_ratio_NV: Tensor, b_NV: Tensor) -> Tensor:
    """KL(a || b) from a, log a - log b and b."""
    return (a_NV * log_ratio_NV).add_(b_NV).sub_(a_NV).sum(-1)


def _through_softmax(q_NV: Tensor, slope_NV: Tensor) -> Tensor:
    """The gradient at the logits from the derivative with respect to q; `slope_NV` is used up."""
    # Counted from the likeliest id's slope: where q is almost 1 the mean would swallow the digits that matter.
    slope_NV.sub_(slope_NV.gather(1, q_NV.argmax(-1, keepdim=True)))
    return slope_NV.sub_((q_NV * slope_NV).sum(-1, keepdim=True)).mul_(q_NV)
