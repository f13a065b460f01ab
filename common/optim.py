"""Optimizers and the learning-rate schedule of every training loop.

Matrices inside the transformer blocks may be trained by Muon (orthogonalised momentum), everything else (embeddings,
biases, norms) by AdamW. `torch.optim.Muon` always computes its Newton-Schulz iteration in bfloat16, at a hundred times
the cost of the float32 product on a CPU without bfloat16 units. So the iteration is here, in the dtype in which the
machine is fast, and over stacks of equally shaped matrices.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.errors import require_above, require_between

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Quintic coefficients of Keller Jordan's Muon (kellerjordan.github.io/posts/muon): steep at 0, about 1 in the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizers, their learning rates and the schedule that scales both."""

    matrices: Literal["adamw", "muon"] = "adamw"
    """Optimizer of the blocks' matrices; the rest is always AdamW's."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon, before its scale `sqrt(max(1, rows / columns))`."""
    muon_momentum: float = 0.95
    """Nesterov momentum of Muon."""
    muon_iterations: int = 5
    """Newton-Schulz iterations of Muon."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the first and second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices and embeddings; biases and norms have none."""
    gradient_clip: float = 1.0
    """Largest norm of the whole gradient; 0 turns clipping off."""
    warmup_share: float = 0.02
    """Share of the steps over which the learning rate rises linearly from 0."""
    decay: Literal["cosine", "linear"] = "cosine"
    """Shape of the fall from the peak to the floor."""
    stable_share: float = 0.0
    """Share of the steps that stay at the peak before the fall begins."""
    floor_share: float = 0.1
    """Learning rate at the end, as a share of the peak."""

    def __post_init__(self) -> None:
        require_above(0, learning_rate=self.learning_rate, muon_learning_rate=self.muon_learning_rate)
        require_between(0, 1, warmup_share=self.warmup_share, stable_share=self.stable_share)
        require_between(0, 1, warmup_plus_stable_share=self.warmup_share + self.stable_share)
        require_between(0, 1, floor_share=self.floor_share)


def schedule(step: int, steps: int, config: OptimConfig) -> float:
    """Factor on the peak learning rate in optimizer step `step` (0 to steps - 1)."""
    warmup = config.warmup_share * steps
    if step + 1 < warmup:
        return (step + 1) / warmup
    start = warmup + config.stable_share * steps
    progress = min(1.0, max(0.0, (step + 1 - start) / max(1.0, steps - start)))
    fall = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.decay == "cosine" else 1.0 - progress
    return config.floor_share + (1.0 - config.floor_share) * fall


def orthogonalise(matrices_SMN: Tensor, *, iterations: int, dtype: torch.dtype) -> Tensor:
    """Replace the singular values of each matrix of a stack by about 1 (0.7 to 1.2), by Newton-Schulz iteration.

    Args:
        matrices_SMN: a stack of S matrices.
        iterations: five bring singular values above 1e-3 of the largest near 1.
        dtype: dtype of the products.

    Returns:
        A stack of the same shape and of `dtype`.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices_SMN.to(dtype)
    wide = x.size(1) <= x.size(2)
    x = x if wide else x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.transpose(1, 2)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, as the update of a matrix (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimConfig, dtype: torch.dtype) -> None:
        defaults: dict[str, Any] = {"lr": config.muon_learning_rate, "weight_decay": config.weight_decay}
        super().__init__(list(parameters), defaults)
        self._momentum, self._iterations, self._dtype = config.muon_momentum, config.muon_iterations, dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks[parameter.shape].append(parameter)
            for shape, parameters in stacks.items():
                updates = orthogonalise(
                    torch.stack([self._nesterov(p) for p in parameters]), iterations=self._iterations, dtype=self._dtype
                )
                scale = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.to(parameter.dtype), alpha=-scale)

    def _nesterov(self, parameter: nn.Parameter) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(parameter.grad, 1.0 - self._momentum)
        return parameter.grad.lerp(momentum, self._momentum)


class Optimizers:
    """The optimizers of one model, stepped and saved together."""

    def __init__(self, model: nn.Module, config: OptimConfig, compute_dtype: torch.dtype) -> None:
        self._config = config
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = {
            name
            for name, p in self._named.items()
            if config.matrices == "muon" and p.ndim == 2 and "embed" not in name and "lm_head" not in name
        }
        decayed = [p for name, p in self._named.items() if name not in matrices and p.ndim == 2]
        others = [p for name, p in self._named.items() if name not in matrices and p.ndim != 2]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas, fused=True
            )
        ]
        if matrices:
            self._optimizers.append(Muon((self._named[name] for name in sorted(matrices)), config, compute_dtype))
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def clip_gradients(self) -> float:
        """Scale the whole gradient down to `gradient_clip`; returns its norm before."""
        limit = self._config.gradient_clip or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self._named.values(), limit))

    def step(self, factor: float) -> None:
        """Update with the peak learning rates times `factor`."""
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop the gradient."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """All state tensors by `<parameter>/<state>`, created where the optimizer has not stepped yet."""
        state: dict[str, Tensor] = {}
        for optimizer in self._optimizers:
            muon = isinstance(optimizer, Muon)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    slots = optimizer.state[parameter]
                    if not slots and muon:
                        slots["momentum"] = torch.zeros_like(parameter)
                    elif not slots:
                        slots["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                        slots["exp_avg"] = torch.zeros_like(parameter)
                        slots["exp_avg_sq"] = torch.zeros_like(parameter)
                    name = next(n for n, p in self._named.items() if p is parameter)
                    state.update({f"{name}/{slot}": tensor for slot, tensor in slots.items()})
        return state
