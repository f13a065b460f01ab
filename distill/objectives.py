"""Every distillation objective: pure functions of one chunk of logits.

An objective takes the student's logits, the teacher's logits (None if it needs none), the next-token ids of one chunk
and its own settings by keyword. It returns the per-token loss, its gradient at the student's logits and further
per-token values for the log, and does not modify its arguments. `distill.methods` names them;
`common.fused_linear_loss` calls them. The divergences themselves are in `common.divergences`.

Legend: C tokens of the chunk, V shared vocabulary, K ids kept; p teacher, q student, y the next token of the text.
"""

import math

import torch
from torch import Tensor

from common import divergences
from common.divergences import log_softmax, soft_cross_entropy, tilted_cross_entropy
from common.errors import UserError
from distill.taid import tilt

ChunkResult = tuple[Tensor, Tensor, dict[str, Tensor]]


def cross_entropy(student_CV: Tensor, teacher_CV: Tensor | None, targets_C: Tensor) -> ChunkResult:
    """The language-modelling loss on the text itself; needs no teacher."""
    loss_C, gradient_CV = divergences.cross_entropy(student_CV, targets_C)
    return loss_C, gradient_CV, {}


def forward_kl(student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor) -> ChunkResult:
    """KL(p || q); `cross_entropy` in the log is larger by p's entropy."""
    cross_entropy_C, kl_C, gradient_CV = soft_cross_entropy(student_CV, teacher_CV)
    return kl_C, gradient_CV, {"cross_entropy": cross_entropy_C}


def reverse_kl(student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor) -> ChunkResult:
    """KL(q || p)."""
    return *divergences.reverse_kl(student_CV, teacher_CV), {}


def jensen_shannon(student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, *, beta: float = 0.1) -> ChunkResult:
    """GKD's generalised Jensen-Shannon divergence; its beta as in SakanaAI/TAID@a062892."""
    return *divergences.jensen_shannon(student_CV, teacher_CV, beta=beta), {}


def total_variation(student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor) -> ChunkResult:
    """Half the L1 distance of p and q."""
    return *divergences.total_variation(student_CV, teacher_CV), {}


def skew_forward_kl(student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, *, skew: float = 0.1) -> ChunkResult:
    """DistiLLM's skew KL, KL(p || skew p + (1 - skew) q)."""
    return *divergences.skew_forward_kl(student_CV, teacher_CV, skew=skew), {}


def skew_reverse_kl(student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, *, skew: float = 0.1) -> ChunkResult:
    """DistiLLM's skew reverse KL, KL(q || (1 - skew) p + skew q)."""
    return *divergences.skew_reverse_kl(student_CV, teacher_CV, skew=skew), {}


def taid(student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, *, t: float) -> ChunkResult:
    """Cross-entropy towards TAID's intermediate distribution (arXiv 2501.16937, eq. 3 and 4).

    The target is `softmax((1 - t) z_s + t z_T)` with the student's logits held constant. The loss is the released
    code's cross-entropy; `kl` in the log is smaller by the target's entropy and has the same gradient.
    """
    cross_entropy_C, kl_C, gradient_CV = tilted_cross_entropy(student_CV, tilt(student_CV, teacher_CV, t))
    return cross_entropy_C, gradient_CV, {"kl": kl_C}


def taid_labels(
    student_CV: Tensor, teacher_CV: Tensor | None, targets_C: Tensor, *, t: float, smoothing: float = 0.1
) -> ChunkResult:
    """TAID without a teacher: the target is `q^(1 - t) y_eps^t`, normalised, with the smoothed label y_eps.

    `y_eps = (1 - smoothing) onehot(y) + smoothing / V`. With smoothing 0 the geometric mean is the label itself for
    every t above 0 (`docs/taid.md`), so smoothing must be above 0.
    """
    # log y_eps is one constant except at the label, and a constant drops out of the softmax. The student's logits are
    # taken relative to their largest, so that near it their product with t keeps its digits.
    floor = smoothing / student_CV.size(-1)
    lift = math.log((1.0 - smoothing + floor) / floor)
    shifted_CV = student_CV - student_CV.amax(-1, keepdim=True)
    labels_CV = torch.zeros_like(student_CV).scatter_(1, targets_C[:, None], lift)
    cross_entropy_C, kl_C, gradient_CV = tilted_cross_entropy(shifted_CV, tilt(shifted_CV, labels_CV, t))
    return cross_entropy_C, gradient_CV, {"kl": kl_C}


def adaptive_kl(student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, *, head_mass: float = 0.5) -> ChunkResult:
    """`w KL(p || q) + (1 - w) KL(q || p)`, w the share of `sum |p - q|` in p's head (arXiv 2404.02657).

    The head is p's most likely id and every further one while the mass up to it stays within `head_mass`. w is a
    constant for the gradient.
    """
    _, forward_C, forward_gradient_CV = soft_cross_entropy(student_CV, teacher_CV)
    reverse_C, reverse_gradient_CV = divergences.reverse_kl(student_CV, teacher_CV)
    p_CV, q_CV = torch.softmax(teacher_CV, dim=-1), torch.softmax(student_CV, dim=-1)
    sorted_CV, order_CV = p_CV.sort(dim=-1, descending=True)
    in_head_CV = sorted_CV.cumsum(-1) <= head_mass
    in_head_CV[:, 0] = True
    gap_CV = (p_CV - q_CV).abs_()
    head_C = (gap_CV.gather(1, order_CV) * in_head_CV).sum(-1)
    total_C = gap_CV.sum(-1)
    share_C = torch.where(total_C > 0, head_C / total_C.clamp(min=torch.finfo(total_C.dtype).tiny), 0.5)
    gradient_CV = torch.lerp(reverse_gradient_CV, forward_gradient_CV, share_C[:, None])
    return torch.lerp(reverse_C, forward_C, share_C), gradient_CV, {"head_share": share_C}


def ctkd(student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, *, temperature: float) -> ChunkResult:
    """`T^2 KL(p_T || q_T)` at CTKD's learnt temperature (arXiv 2211.16231), both sides softened by T.

    `temperature_gradient` in the log is the derivative of the loss with respect to T, also through p_T; the controller
    moves T against the student with it (`distill.controllers`).
    """
    student_CV, teacher_CV = student_CV / temperature, teacher_CV / temperature
    _, kl_C, gradient_CV = soft_cross_entropy(student_CV, teacher_CV)
    log_q_CV, log_p_CV = log_softmax(student_CV), log_softmax(teacher_CV)
    p_CV, ratio_CV = log_p_CV.exp(), log_p_CV - log_q_CV
    # d KL / d (1/T) = Cov_p(z_T, log p - log q) - (E_p z_s - E_q z_s). Logits enter as T log p and T log q: neither
    # term depends on a row's constant, and without it no large logits cancel.
    centred_CV = log_p_CV - (p_CV * log_p_CV).sum(-1, keepdim=True)
    slope_C = (p_CV * centred_CV * ratio_CV).sum(-1) + (gradient_CV * log_q_CV).sum(-1)
    extras = {"temperature_gradient": temperature * (2.0 * kl_C - slope_C)}
    return temperature**2 * kl_C, gradient_CV.mul_(temperature), extras


def decoupled_kd(
    student_CV: Tensor,
    teacher_CV: Tensor,
    targets_C: Tensor,
    *,
    target_weight: float = 1.0,
    other_weight: float = 0.5,
) -> ChunkResult:
    """DKD (arXiv 2203.08679): the label against the rest, and the rest among itself, weighed apart.

    `target_weight KL(b_p || b_q) + other_weight KL(p' || q')`, with b = (p(y), 1 - p(y)) and p' the distribution over
    all ids but y. With weights 1 and 1 - p(y) it would be the forward KL.
    """
    is_target_CV = torch.zeros_like(student_CV, dtype=torch.bool).scatter_(1, targets_C[:, None], True)
    binary_C, gradient_CV = _kl_of_masses(student_CV, teacher_CV, is_target_CV)
    others_C, others_gradient_CV = _kl_without(student_CV, teacher_CV, is_target_CV)
    gradient_CV = gradient_CV.mul_(target_weight).add_(others_gradient_CV, alpha=other_weight)
    extras = {"target_kl": binary_C, "others_kl": others_C}
    return target_weight * binary_C + other_weight * others_C, gradient_CV, extras


def decoupled_top_k(
    student_CV: Tensor, teacher_CV: Tensor, targets_C: Tensor, *, k: int = 32, kept_temperature: float = 1.0
) -> ChunkResult:
    """LFM2's decoupled, tempered top-k loss (arXiv 2511.23404).

    `KL(b_p || b_q) + p(S) KL_tau(p | S || q | S)`: S holds the teacher's k likeliest ids, b the masses of S and of the
    rest, and only the second term, inside S, is softened by the temperature tau.
    """
    if k >= student_CV.size(-1):
        wanted = f"k below the vocabulary's {student_CV.size(-1)} ids"
        raise UserError("out-of-range", wanted=wanted, got=str(k), next_step="lower the setting k")
    ids_CK = teacher_CV.topk(k, dim=-1, sorted=False).indices
    is_kept_CV = torch.zeros_like(student_CV, dtype=torch.bool).scatter_(1, ids_CK, True)
    binary_C, gradient_CV = _kl_of_masses(student_CV, teacher_CV, is_kept_CV)
    scale = 1.0 / kept_temperature
    kept_student_CK, kept_teacher_CK = student_CV.gather(1, ids_CK), teacher_CV.gather(1, ids_CK)
    _, kept_C, kept_gradient_CK = soft_cross_entropy(kept_student_CK * scale, kept_teacher_CK * scale)
    mass_C = torch.exp(kept_teacher_CK.logsumexp(-1) - teacher_CV.logsumexp(-1))
    gradient_CV.scatter_add_(1, ids_CK, kept_gradient_CK.mul_(mass_C[:, None] * scale))
    return binary_C + mass_C * kept_C, gradient_CV, {"kept_mass": mass_C}


def _kl_of_masses(student_CV: Tensor, teacher_CV: Tensor, inside_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL between p's and q's masses of a set of ids and of the rest, and its gradient.

    With the masses P and Q of the set, the gradient is `(Q - P) q(v) / Q` inside and `(P - Q) q(v) / (1 - Q)` outside.
    """
    log_p_CV, log_q_CV = log_softmax(teacher_CV), log_softmax(student_CV)
    masks = (inside_CV, ~inside_CV)
    log_p_in_C, log_p_out_C = (log_p_CV.masked_fill(~mask_CV, -torch.inf).logsumexp(-1) for mask_CV in masks)
    log_q_in_C, log_q_out_C = (log_q_CV.masked_fill(~mask_CV, -torch.inf).logsumexp(-1) for mask_CV in masks)
    # Q - P is summed over single ids, and on the side whose masses are small: near 1 a difference of masses loses its
    # digits.
    _, _, difference_CV = soft_cross_entropy(student_CV, teacher_CV)
    excess_in_C, excess_out_C = (difference_CV.masked_fill(~mask_CV, 0.0).sum(-1) for mask_CV in masks)
    excess_C = torch.where(log_p_in_C < log_p_out_C, excess_in_C, -excess_out_C)
    loss_C = _mass_kl(log_p_in_C, log_q_in_C, excess_C) + _mass_kl(log_p_out_C, log_q_out_C, -excess_C)
    excess_C = excess_C[:, None]
    inside_gradient_CV = torch.softmax(student_CV.masked_fill(~inside_CV, -torch.inf), dim=-1).mul_(excess_C)
    outside_gradient_CV = torch.softmax(student_CV.masked_fill(inside_CV, -torch.inf), dim=-1).mul_(excess_C)
    return loss_C, inside_gradient_CV.sub_(outside_gradient_CV)


def _mass_kl(log_p_C: Tensor, log_q_C: Tensor, excess_C: Tensor) -> Tensor:
    """`P log(P / Q) + Q - P` of two masses, from their logarithms and Q - P."""
    p_C = log_p_C.exp()
    relative_C = excess_C / p_C.clamp(min=torch.finfo(p_C.dtype).tiny)
    near_C = relative_C.clamp(-0.5, 0.5)
    plain_C = (p_C * (log_p_C - log_q_C)).add_(excess_C)
    return torch.where(near_C == relative_C, (near_C - near_C.log1p()).mul_(p_C), plain_C)


def _kl_without(student_CV: Tensor, teacher_CV: Tensor, without_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p' || q') of the distributions over all ids but some, and its gradient, 0 at those."""
    log_q_CV = log_softmax(student_CV.masked_fill(without_CV, -torch.inf))
    log_p_CV = log_softmax(teacher_CV.masked_fill(without_CV, -torch.inf))
    p_CV = log_p_CV.exp()
    terms_CV = log_p_CV.sub_(log_q_CV).masked_fill_(without_CV, 0.0).mul_(p_CV)
    gradient_CV = log_q_CV.exp_().sub_(p_CV)
    return terms_CV.add_(gradient_CV).sum(-1), gradient_CV
