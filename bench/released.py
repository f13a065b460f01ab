"""The dense TAID loss as the released code computes it (SakanaAI/TAID@a062892 src/distil_losses), for comparison.

Whole logits of every position on both sides, softmax and log-softmax forced to float32, infinite logits zeroed, and
autograd for the rest. Its copies of shifted logits are left out, which is to its advantage. Only benchmarks use it.
"""

import torch
from torch import Tensor


def taid_loss(student_logits_NV: Tensor, teacher_logits_NV: Tensor, mask_N: Tensor, *, t: float) -> Tensor:
    """Mean over unmasked tokens of the cross-entropy towards the intermediate distribution."""
    mixed_NV = (1.0 - t) * student_logits_NV.detach() + t * teacher_logits_NV
    target_NV = torch.softmax(mixed_NV, dim=-1, dtype=torch.float32)
    log_q_NV = torch.log_softmax(student_logits_NV, dim=-1, dtype=torch.float32)
    products_NV = torch.masked_fill(target_NV * log_q_NV, torch.isinf(student_logits_NV), 0.0)
    return -(products_NV.sum(-1) * mask_N).sum() / mask_N.sum()
