"""Divergences between next-token distributions: the value and its gradient at the student's logits, in float32.

Pure functions of one chunk of logits. Legend: N tokens of the chunk, V shared vocabulary. Every function returns the
per-token value and the gradient of that value with respect to the student's logits; nothing is averaged or masked
here, `common.fused_linear_loss` weighs the tokens. This module knows no teacher, no method's name and no device.
"""

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
    log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
    loss_N = -log_probs_NV.gather(1, targets_N[:, None]).squeeze(1)
    gradient_NV = log_probs_NV.exp_()
    gradient_NV.scatter_add_(1, targets_N[:, None], gradient_NV.new_full((len(targets_N), 1), -1.0))
    return loss_N, gradient_NV


def soft_cross_entropy(logits_NV: Tensor, target_probs_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy `-sum_v p(v) log q(v)` towards a distribution that is held constant.

    Args:
        logits_NV: the student's logits, float32.
        target_probs_NV: p, rows sum to 1, float32.

    Returns:
        loss_N in nats, and its gradient `q - p`, both float32.
    """
    log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
    loss_N = -(target_probs_NV * log_probs_NV).sum(-1)
    return loss_N, log_probs_NV.exp_().sub_(target_probs_NV)


def entropy(probs_NV: Tensor) -> Tensor:
    """Entropy `-sum_v p(v) log p(v)` of each row in nats, with `0 log 0 = 0`; shape [N]."""
    return torch.special.entr(probs_NV).sum(-1)
