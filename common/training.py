"""What both training loops share: resuming, keeping the best weights, the finite-loss check, the held-out loss.

The loops themselves stand in `distill.train` and `instruct.train` and read in execution order. What is numerically
delicate (loss normalisation, validation, resume) exists once, here and in `common.fused_linear_loss`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.checkpoint import TrainingState, head_weight, hidden_states, resume_training, save_training
from common.chunk_passes import chunks
from common.device import Machine
from common.divergences import cross_entropy
from common.errors import UserError
from common.fused_linear_loss import DEFAULT_CHUNK_TOKENS, head_product
from common.launch import Team
from common.optim import Optimizers
from common.packing import PackedRows, VarlenBatch
from common.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY_WEIGHT = 1e-9
"""Stands for the sum of the loss weights of a step without a valid token, whose loss is 0."""


def require_fit(model: "PreTrainedModel", tokenizer: Tokenizer, sequence_tokens: int) -> None:
    """Refuse rows longer than the model's positions and heads smaller than the tokenizer.

    Raises:
        UserError: either of the two.
    """
    positions = int(model.config.max_position_embeddings)
    if sequence_tokens > positions:
        raise UserError(
            wanted=f"rows of at most {positions} tokens, the model's positions",
            got=f"rows of {sequence_tokens}",
            next_step="pack with a shorter sequence_tokens or take a model with more positions",
        )
    vocabulary = head_weight(model).size(0)
    if vocabulary < tokenizer.size:
        raise UserError(
            wanted=f"a model with at least the tokenizer's {tokenizer.size} logits",
            got=f"{vocabulary}",
            next_step="give the model a vocab_size of at least the tokenizer's size",
        )


def require_valid_tokens(rows: PackedRows, folder: Path) -> None:
    """Refuse a split in which no token counts: a validation loss on it would be 0 whatever the weights are.

    Raises:
        UserError: no row, or loss weights of 0 throughout.
    """
    if not any(rows.batch([row]).num_valid_tokens for row in range(rows.num_rows)):
        raise UserError(
            wanted="a split with at least one supervised token",
            got=f"none in {folder}",
            next_step="raise this split's share, or give more documents",
        )


def require_finite(loss: float, gradient_norm: float, *, step: int) -> None:
    """Stop before a broken update reaches a checkpoint.

    Raises:
        UserError: the loss or the gradient's norm is NaN or infinite.
    """
    for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
        if not math.isfinite(value):
            raise UserError(
                wanted=f"a finite {name}",
                got=f"{value} in optimizer step {step}",
                next_step="lower the learning rate or look at the data of that step; finished steps are kept",
            )


def require_finite_logits(logit_sums: Mapping[str, Tensor | float], *, step: int) -> None:
    """Stop before the optimizer when a logit is infinite or NaN, and name whose.

    Args:
        logit_sums: sums by side; of several processes the sums over all, so that all of them stop.

    Raises:
        UserError: naming the step and the tensor.
    """
    for side, total in logit_sums.items():
        if not math.isfinite(float(total)):
            raise UserError(
                wanted="finite logits",
                got=f"inf or NaN among the {side}'s logits in optimizer step {step}",
                next_step="lower the learning rate or look at the data of that step; finished steps are kept",
            )


def weight_of(batches: Sequence[VarlenBatch]) -> float:
    """Sum of the loss weights of a whole optimizer step: the one denominator of its mean."""
    return float(sum(real.weights_M.sum(dtype=torch.float64) for real in batches))


@torch.no_grad()
def row_losses(
    model: "PreTrainedModel",
    rows: PackedRows,
    machine: Machine,
    *,
    vocabulary: int,
    indices: Sequence[int] | None = None,
    rows_per_batch: int = 8,
) -> list[tuple[float, float]]:
    """Cross-entropy on packed rows (all, or those of `indices`): a pair for each row, weighted sum in nats and tokens.

    The logits are made in chunks and cropped to the tokenizer's ids.
    """
    results: list[tuple[float, float]] = []
    training = model.training
    model.eval()
    head_VD = head_weight(model)[:vocabulary]
    wanted = range(rows.num_rows) if indices is None else indices
    for part in chunks(len(wanted), rows_per_batch):
        batch = rows.batch(wanted[part])
        real = batch.varlen()
        hidden_MD = hidden_states(model, real, machine)
        targets_M = real.targets_M.to(hidden_MD.device)
        loss_M = torch.zeros(targets_M.numel(), device=hidden_MD.device)
        for part in chunks(len(targets_M), DEFAULT_CHUNK_TOKENS):
            hidden_CD = hidden_MD[part].to(head_VD.dtype)
            logits_CV = head_product(hidden_CD, head_VD, head_VD.new_empty(len(hidden_CD), vocabulary))
            loss_M[part] = cross_entropy(logits_CV.float(), targets_M[part])[0]
        loss_BT = torch.zeros_like(batch.weights_BT)
        loss_BT[batch.doc_ids_BT > 0] = loss_M.cpu()
        sums_B = (loss_BT * batch.weights_BT).sum(1, dtype=torch.float64)
        weights_BT = batch.weights_BT
        results += [(float(a), float(b)) for a, b in zip(sums_B, weights_BT.sum(1), strict=True)]
    model.train(training)
    return results


def mean_loss(pairs: Sequence[tuple[float, float]], team: Team | None = None) -> float:
    """Mean over all weights of the pairs that `row_losses` returns, of every process of a team.

    Together they hold at least one valid token; a process may have none of it.
    """
    totals = {"loss": sum(loss for loss, _ in pairs), "weight": sum(weight for _, weight in pairs)}
    if team is not None:
        totals = team.totals(totals)
    assert totals["weight"] > 0, "a split without valid tokens has no loss: require_valid_tokens refuses it before"
    return totals["loss"] / totals["weight"]


def held_out_loss(
    model: "PreTrainedModel",
    rows: PackedRows,
    machine: Machine,
    *,
    vocabulary: int,
    step: int,
    team: Team | None = None,
) -> float:
    """Mean cross-entropy over a whole validation split, each process of a team measuring a part of its rows.

    Raises:
        UserError: it is not finite; `step` names the optimizer step that it was measured after.
    """
    own = range(rows.num_rows) if team is None else range(team.rank, rows.num_rows, team.size)
    loss = mean_loss(row_losses(model, rows, machine, vocabulary=vocabulary, indices=own), team)
    require_finite(loss, 0.0, step=step)
    return loss


class Keeper:
    """Training state and best weights of one loop, in `scratch/` of the stage's folder."""

    def __init__(self, folder: Path, model: nn.Module, optimizers: Optimizers, *, writes: bool = True) -> None:
        """Of several processes one `writes`; all of them resume from what it wrote."""
        self._scratch = folder / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._best_file = self._scratch / "best.safetensors"
        self._model, self._optimizers, self._writes = model, optimizers, writes
        self.best_step, self.best_loss = -1, math.inf

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"model/{name}": p for name, p in self._model.named_parameters()}
        return {**weights, **{f"optimizer/{k}": v for k, v in self._optimizers.tensors().items()}}

    def resume(self) -> TrainingState | None:
        """Load the newest complete state into model and optimizers; None at a fresh start."""
        state = resume_training(self._scratch, self._tensors())
        if state is not None:
            self.best_step, self.best_loss = state.values["best_step"], state.values["best_loss"]
            self.best_loss = math.inf if self.best_loss is None else self.best_loss
        return state

    def save(self, step: int, values: dict[str, Any]) -> None:
        """Write the state after `step` optimizer steps."""
        if not self._writes:
            return
        best = {"best_step": self.best_step, "best_loss": None if math.isinf(self.best_loss) else self.best_loss}
        save_training(self._scratch, self._tensors(), TrainingState(step=step, values={**values, **best}))

    def offer(self, step: int, validation_loss: float) -> None:
        """Keep the weights if they are the best by validation so far."""
        if validation_loss < self.best_loss:
            self.best_step, self.best_loss = step, validation_loss
            if not self._writes:
                return
            partial = self._best_file.with_suffix(".partial")
            save_file({name: p.detach().contiguous() for name, p in self._model.named_parameters()}, partial)
            partial.rename(self._best_file)

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best weights back into the model."""
        if self.best_step >= 0:
            best = load_file(self._best_file)
            for name, parameter in self._model.named_parameters():
                parameter.copy_(best[name])
