"""The formulas of the objectives' articles, written down naively for torch's own autograd in float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distill.methods import METHODS

T, TEMPERATURE = 0.35, 3.0
Reference = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


def _logs(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(log q, log p); q carries the gradient, p is constant."""
    return torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _log_mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    return torch.logaddexp(log_a + log_a.new_tensor(share).log(), log_b + log_b.new_tensor(1 - share).log())


def cross_entropy(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    return torch.nn.functional.cross_entropy(student, targets, reduction="none")


def forward_kl(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    log_q, log_p = _logs(student, teacher)
    return _kl(log_p, log_q)


def reverse_kl(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    log_q, log_p = _logs(student, teacher)
    return _kl(log_q, log_p)


def jensen_shannon(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    (log_q, log_p), beta = _logs(student, teacher), given["beta"]
    log_m = _log_mix(log_p, log_q, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def total_variation(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    log_q, log_p = _logs(student, teacher)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def skew_forward_kl(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    log_q, log_p = _logs(student, teacher)
    return _kl(log_p, _log_mix(log_p, log_q, given["skew"]))


def skew_reverse_kl(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    log_q, log_p = _logs(student, teacher)
    return _kl(log_q, _log_mix(log_q, log_p, given["skew"]))


def adaptive_kl(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    """The head found by walking down from the likeliest id, one token after the other."""
    log_q, log_p = _logs(student, teacher)
    p, q = log_p.exp(), log_q.exp().detach()
    shares: list[Tensor] = []
    for row in range(len(p)):
        mass, head = 0.0, torch.zeros(()).double()
        for place, token in enumerate(p[row].argsort(descending=True).tolist()):
            mass += float(p[row, token].detach())
            if place > 0 and mass > given["head_mass"]:
                break
            head = head + (p[row, token] - q[row, token]).abs()
        shares.append(head / (p[row] - q[row]).abs().sum())
    share = torch.stack(shares)
    return share * _kl(log_p, log_q) + (1 - share) * _kl(log_q, log_p)


def ctkd(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    log_q, log_p = _logs(student / given["temperature"], teacher / given["temperature"])
    return given["temperature"] ** 2 * _kl(log_p, log_q)


def decoupled_kd(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    """DKD on the label's probability and on the logits of all other ids."""
    (log_q, log_p), rows = _logs(student, teacher), torch.arange(len(targets))
    others = torch.stack([torch.tensor([v for v in range(student.size(1)) if v != y]) for y in targets.tolist()])
    target = torch.stack(
        [
            _kl(
                torch.stack([log_p[row, y], torch.logsumexp(log_p[row, others[row]], -1)]),
                torch.stack([log_q[row, y], torch.logsumexp(log_q[row, others[row]], -1)]),
            )
            for row, y in zip(rows.tolist(), targets.tolist(), strict=True)
        ]
    )
    log_q_others, log_p_others = _logs(student.gather(1, others), teacher.gather(1, others))
    return given["target_weight"] * target + given["other_weight"] * _kl(log_p_others, log_q_others)


def decoupled_top_k(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    (log_q, log_p), k, tau = _logs(student, teacher), int(given["k"]), given["kept_temperature"]
    order = teacher.argsort(-1, descending=True)
    kept, rest = order[:, :k], order[:, k:]
    masses = [
        torch.stack([log.gather(1, kept).logsumexp(-1), log.gather(1, rest).logsumexp(-1)], -1)
        for log in (log_p, log_q)
    ]
    log_q_kept, log_p_kept = _logs(student.gather(1, kept) / tau, teacher.gather(1, kept) / tau)
    return _kl(masses[0], masses[1]) + masses[0][:, 0].exp() * _kl(log_p_kept, log_q_kept)


def taid(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    """The target as a normalised geometric mean of the two distributions."""
    log_q, log_p = _logs(student, teacher)
    log_target = torch.log_softmax((1 - given["t"]) * log_q.detach() + given["t"] * log_p, -1)
    return -(log_target.exp() * log_q).sum(-1)


def taid_labels(student: Tensor, teacher: Tensor, targets: Tensor, given: dict[str, Any]) -> Tensor:
    log_q = torch.log_softmax(student, -1)
    label = torch.full_like(student, given["smoothing"] / student.size(1))
    label[torch.arange(len(targets)), targets] += 1 - given["smoothing"]
    log_target = torch.log_softmax((1 - given["t"]) * log_q.detach() + given["t"] * label.log(), -1)
    return -(log_target.exp() * log_q).sum(-1)


REFERENCES: dict[str, Reference] = {
    function.__name__: function
    for function in (
        cross_entropy,
        forward_kl,
        reverse_kl,
        jensen_shannon,
        total_variation,
        skew_forward_kl,
        skew_reverse_kl,
        adaptive_kl,
        ctkd,
        decoupled_kd,
        decoupled_top_k,
        taid,
        taid_labels,
    )
}
VARIED: dict[str, dict[str, float]] = {
    "jensen_shannon": {"beta": 0.7},
    "skew_forward_kl": {"skew": 0.4},
    "skew_reverse_kl": {"skew": 0.4},
    "adaptive_kl": {"head_mass": 0.8},
    "decoupled_kd": {"target_weight": 0.3, "other_weight": 2.0},
    "decoupled_top_k": {"k": 5, "kept_temperature": 2.0},
    "taid_labels": {"smoothing": 0.3},
}


def arguments(name: str) -> dict[str, float]:
    """What the controller gives."""
    return {"taid": {"t": T}, "ctkd": {"temperature": TEMPERATURE}, None: {}}[METHODS[name].controller]
