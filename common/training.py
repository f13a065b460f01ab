"""What the training loops share: the optimizer step, the checks before the first step, held-out loss, reading ahead.

The loops are `distill.train` and `instruct.train`, each in execution order. What is numerically delicate exists once:
the normalisation of the loss here, chunking in `common.fused_linear_loss`, resuming in `common.checkpoint`.
Shape suffixes: B rows, T tokens in a row, M real tokens, C tokens of a chunk, V vocabulary, D hidden size.
"""

import contextlib
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from common.checkpoint import head_weight, hidden_states
from common.chunk_passes import InPlace, Objective, chunks
from common.device import Machine
from common.divergences import cross_entropy
from common.errors import UserError
from common.fused_linear_loss import DEFAULT_CHUNK_TOKENS, LinearLoss, head_product
from common.launch import Distributed
from common.model_loss import ModelLoss
from common.optim import OptimConfig, Optimizers, schedule
from common.packing import PackedRows, VarlenBatch
from common.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

TINY_WEIGHT = 1e-9
"""The denominator of a step without a valid token, whose loss is 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one optimizer step reports, over all micro-batches and processes."""

    means: dict[str, float]
    """For the log: `loss`, the objective's further means, `gradient_norm` before clipping, `learning_rate`."""
    tokens: int
    """Real tokens."""
    is_skipped: bool
    """No token was valid: the loss is 0 and the weights are unchanged."""


def optimizer_step(
    batches: Sequence[VarlenBatch],
    loss: nn.Module,
    objective: Objective | InPlace,
    optimizers: Optimizers,
    distributed: Distributed,
    *,
    step: int,
    steps: int,
    optim: OptimConfig,
    timer: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
) -> StepResult:
    """One optimizer step (0 to steps - 1): the mean loss over its valid tokens, the gradient, the update.

    `batches` are this process's micro-batches, and `loss` is a `ModelLoss` wrapped by `distributed`. `timer` gives a
    context for each of the parts "student" (forward pass and loss), "backward" and "optimizer". UserError where a loss,
    logits or a gradient are not finite; the weights are then unchanged.
    """
    weights = sum(real.weights_M.sum(dtype=torch.float64) for real in batches)
    weight = distributed.all_reduce_sum({"weight": float(weights)})["weight"]
    denominator = max(weight, TINY_WEIGHT)
    sums, logit_sums = {"loss": 0.0}, defaultdict[str, float](float)
    for index, real in enumerate(batches, start=1):
        with distributed.accumulating(loss, last=index == len(batches)):
            with timer("student"):
                # Gradients are averaged over the processes, and the loss is a sum over them.
                result: LinearLoss = loss(real, objective, denominator / distributed.size)
            with timer("backward"):
                result.loss.backward()
        sums["loss"] += float(result.loss.detach()) / distributed.size
        for name, total in result.sums.items():
            sums[name] = sums.get(name, 0.0) + float(total) / denominator
        for side, total in result.logit_sums.items():
            logit_sums[f"{side} logits"] += float(total)
    means = distributed.all_reduce_sum(sums | {"tokens": sum(len(real.tokens_M) for real in batches)})
    tokens = int(means.pop("tokens"))
    with timer("optimizer"):
        means["gradient_norm"] = optimizers.clip_gradients() if weight > 0 else 0.0
        require_finite({**distributed.all_reduce_sum(logit_sums), **means}, step=step + 1)
        factor = schedule(step, steps, optim)
        if weight > 0:
            optimizers.step(factor)
        optimizers.zero_grad()
    means["learning_rate"] = optim.learning_rate * factor
    return StepResult(means=means, tokens=tokens, is_skipped=weight == 0)


def require_finite(values: Mapping[str, float], *, step: int) -> None:
    """UserError for the first value that is NaN or infinite, as a sum of logits is where any of them is.

    `step` counts optimizer steps from 1; 0 is before the first one.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            when = f"in optimizer step {step}" if step else "before the first optimizer step"
            wanted, got = f"finite {name.replace('_', ' ')}", f"{value} {when}"
            next_step = "lower the learning rate or check the data of that step; finished steps are kept"
            next_step = next_step if step else "check the weights of that model, or take another"
            raise UserError("not-finite", wanted=wanted, got=got, next_step=next_step)


def open_rows(
    folder: Path, model: "PreTrainedModel", tokenizer: Tokenizer, *, limit_tokens: int | None = None
) -> PackedRows:
    """A split of packed rows on which this model can be trained or measured.

    UserError for rows that cannot be read, of another tokenizer, longer than the model's positions or without a
    supervised token (their loss would always be 0), and for a head with fewer logits than the tokenizer's ids.
    """
    rows = PackedRows(folder, limit_tokens=limit_tokens)
    rows.require(tokenizer)
    positions, vocab_size = int(model.config.max_position_embeddings), head_weight(model).size(0)
    if rows.sequence_tokens > positions:
        wanted, next_step = f"rows of at most {positions} tokens, the model's positions", "lower sequence_tokens"
        raise UserError("mismatch", wanted=wanted, got=f"rows of {rows.sequence_tokens}", next_step=next_step)
    _require_plain_rope(model, rows.sequence_tokens)
    if vocab_size < tokenizer.size:
        wanted = f"a model with at least the tokenizer's {tokenizer.size} logits"
        raise UserError("mismatch", wanted=wanted, got=f"{vocab_size}", next_step="raise the model's vocab_size")
    if not any(rows.batch([row]).num_valid_tokens for row in range(rows.num_rows)):
        wanted, next_step = "a split with a supervised token", "raise this split's share, or give more documents"
        raise UserError("empty", wanted=wanted, got=f"none in {folder}", next_step=next_step)
    return rows


def _require_plain_rope(model: "PreTrainedModel", sequence_tokens: int) -> None:
    """Refuse rotary embeddings that the longest document of a batch changes for all others in it."""
    rope: Mapping[str, Any] = getattr(model.config, "rope_parameters", None) or {}
    name = "original_max_position_embeddings"
    trained = rope.get(name) or getattr(model.config, name, None) or model.config.max_position_embeddings
    if rope.get("rope_type") in ("dynamic", "longrope") and sequence_tokens > int(trained):
        wanted = f"rows of at most {trained} tokens, up to which rope_type {rope['rope_type']} is alike in all batches"
        next_step = "lower sequence_tokens, or take a checkpoint with another rope_type"
        raise UserError("unsupported", wanted=wanted, got=f"rows of {sequence_tokens}", next_step=next_step)


@torch.no_grad()
def row_losses(
    model: "PreTrainedModel",
    rows: PackedRows,
    machine: Machine,
    *,
    vocab_size: int,
    indices: Sequence[int] | None = None,
    rows_per_batch: int = 8,
) -> list[tuple[float, float]]:
    """Cross-entropy on packed rows (all, or those of `indices`): (weighted sum in nats, sum of weights) of each row.

    The logits are made in chunks and cropped to the tokenizer's `vocab_size` ids.
    """
    results: list[tuple[float, float]] = []
    training = model.training
    model.eval()
    head_VD = head_weight(model)[:vocab_size]
    wanted = range(rows.num_rows) if indices is None else indices
    for rows_B in chunks(len(wanted), rows_per_batch):
        batch = rows.batch(wanted[rows_B])
        real = batch.varlen()
        hidden_MD = hidden_states(model, real, machine)
        targets_M = real.targets_M.to(head_VD.device)  # a model that is spread may have its head on another GPU
        loss_M = torch.zeros(targets_M.numel(), device=head_VD.device)
        for part in chunks(len(targets_M), DEFAULT_CHUNK_TOKENS):
            hidden_CD = hidden_MD[part].to(head_VD)
            logits_CV = head_product(hidden_CD, head_VD, head_VD.new_empty(len(hidden_CD), vocab_size))
            loss_M[part] = cross_entropy(logits_CV.float(), targets_M[part])[0]
        loss_BT = torch.zeros_like(batch.weights_BT)
        loss_BT[batch.doc_ids_BT > 0] = loss_M.cpu()
        sums_B = (loss_BT * batch.weights_BT).sum(1, dtype=torch.float64)
        results += [(float(a), float(b)) for a, b in zip(sums_B, batch.weights_BT.sum(1), strict=True)]
    model.train(training)
    return results


def mean_loss(pairs: Sequence[tuple[float, float]], distributed: Distributed | None = None) -> float:
    """Mean over all weights of the pairs of `row_losses`, of all processes together; their weights are not all 0."""
    totals = {"loss": sum(loss for loss, _ in pairs), "weight": sum(weight for _, weight in pairs)}
    if distributed is not None:
        totals = distributed.all_reduce_sum(totals)
    assert totals["weight"] > 0, "a split without valid tokens has no loss: open_rows refuses it"
    return totals["loss"] / totals["weight"]


def held_out_loss(loss: ModelLoss, rows: PackedRows, distributed: Distributed, *, step: int) -> float:
    """Mean cross-entropy of the model in nats over a whole split, of which each process measures its share.

    UserError where the mean is not finite, naming `step`, the optimizer step that it was measured after.
    """
    indices = range(distributed.rank, rows.num_rows, distributed.size)
    losses = row_losses(loss.model, rows, loss.machine, vocab_size=loss.vocab_size, indices=indices)
    mean = mean_loss(losses, distributed)
    require_finite({"validation loss of the model": mean}, step=step)
    return mean


def prefetched(make: Callable[[int], T], steps: Iterable[int], ahead: int = 2) -> Iterator[tuple[int, T]]:
    """`(step, make(step))` for every step, in order, with up to `ahead` of them made early in one background thread.

    Reading mapped files and laying out tensors needs no result of an earlier step, so it overlaps with computing.
    An exception of `make` is raised at its own step. The thread ends with the loop, however that ends: where the loop
    is left early, when the iterator is closed or dropped. Keep no name for it, so that leaving the loop drops it.
    `steps` is read in the caller's thread, at most `ahead` (1 or more) early.
    """
    assert ahead >= 1, "with nothing made ahead there is nothing to overlap"
    waiting = iter(steps)
    pending: deque[tuple[int, Future[T]]] = deque()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        pending.extend((step, thread.submit(make, step)) for step in islice(waiting, ahead))
        while pending:
            step, made = pending.popleft()
            ready = made.result()
            pending.extend((later, thread.submit(make, later)) for later in islice(waiting, 1))
            yield step, ready
    finally:
        thread.shutdown(cancel_futures=True)
