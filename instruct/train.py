"""Instruction tuning: a base checkpoint and rendered conversations to a chat checkpoint.

`python -m instruct train CHECKPOINT --conversations DIR --out DIR [--replay CORPUS]`. The loss counts the
assistant's turns only, by the mask that the rows were packed with. A share of every batch may be replayed from the
pre-training text, with plain cross-entropy, so that the model keeps what it knew. There is no teacher here:
distilling on conversations is `distill()` on their rows.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from common.checkpoint import head_weight, hidden_states, load_model, save_model
from common.divergences import cross_entropy
from common.errors import UserError
from common.fused_linear_loss import fused_linear_loss
from common.metrics import MetricsLog, progress
from common.optim import OptimConfig, Optimizers, schedule
from common.packing import PackedRows, VarlenBatch, rows_of_step
from common.prefetch import prefetched
from common.provenance import is_text, propagate_sources
from common.store import Workspace, stage
from common.tokenizer import Tokenizer
from common.training import (
    TINY_WEIGHT,
    Keeper,
    held_out_loss,
    require_finite,
    require_finite_logits,
    require_fit,
    require_valid_tokens,
    weight_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructConfig:
    """One tuning run on conversations."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    steps: int = 500
    """Optimizer steps."""
    rows_per_step: int = 8
    """Packed rows of conversations in one optimizer step."""
    replay_rows_per_step: int = 0
    """Packed rows of pre-training text added to each step; their tokens weigh as packed."""
    replay_tokens: int | None = None
    """Replay only from the first rows of train that hold this many tokens; None replays from all of it."""
    micro_batch_rows: int = 8
    """Packed rows that go through the model at one time."""
    validate_every: int = 100
    """Optimizer steps between two validations; the last step always validates."""
    checkpoint_every: int = 100
    """Optimizer steps between two checkpoints to resume from."""
    chunk_tokens: int | None = None
    """Tokens whose logits exist at one time; None takes 512, in bfloat16 on a CPU 1024."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the checkpoint's weights."""
    seed: int = 0
    """Seed of the order of the rows."""

    def __post_init__(self) -> None:
        counts = (self.steps, self.rows_per_step, self.micro_batch_rows, self.validate_every, self.checkpoint_every)
        least = min(*counts, 1 if self.chunk_tokens is None else self.chunk_tokens)
        if least < 1 or self.replay_rows_per_step < 0:
            raise UserError(
                wanted="steps, rows, chunk and intervals of at least 1, replayed rows of at least 0",
                got=f"{counts}, {self.replay_rows_per_step}",
                next_step="mend the settings",
            )


def _plain(
    student_logits_CV: torch.Tensor, teacher_logits_CV: torch.Tensor | None, targets_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Cross-entropy in the shape of an objective."""
    return *cross_entropy(student_logits_CV, targets_C), {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The packed rows that a tuning run reads."""

    conversations: PackedRows
    validation: PackedRows
    replay: PackedRows | None


def _open_rows(
    config: InstructConfig, model: "PreTrainedModel", tokenizer: Tokenizer, conversations: Path, replay: Path | None
) -> Rows:
    """Open and check the packed rows."""
    if (config.replay_rows_per_step > 0) != (replay is not None):
        raise UserError(
            wanted="replayed rows and a corpus to replay from, or neither",
            got=f"{config.replay_rows_per_step} rows a step, corpus {replay}",
            next_step="give both or neither",
        )
    if is_text(conversations):
        raise UserError(
            wanted="conversations, whose answers alone count: a folder of `python -m instruct conversations`",
            got=f"{conversations}, a corpus of text",
            next_step="train on text with `python -m distill train`, or replay it with --replay",
        )
    rows = Rows(
        conversations=PackedRows(conversations / "packed" / "train"),
        validation=PackedRows(conversations / "packed" / "validation"),
        replay=None if replay is None else PackedRows(replay / "packed" / "train", limit_tokens=config.replay_tokens),
    )
    for opened in (rows.conversations, rows.replay):
        if opened is not None:
            opened.require(tokenizer)
            require_fit(model, tokenizer, opened.sequence_tokens)
    for opened, split in ((rows.conversations, "train"), (rows.validation, "validation")):
        require_valid_tokens(opened, conversations / "packed" / split)
    return rows


def micro_batches(rows: Rows, config: InstructConfig, step: int) -> list[VarlenBatch]:
    """The micro-batches of one optimizer step: conversations first, then replayed text."""
    sources = [(rows.conversations, config.rows_per_step)]
    if rows.replay is not None:
        sources.append((rows.replay, config.replay_rows_per_step))
    batches: list[VarlenBatch] = []
    for source, rows_per_step in sources:
        indices = rows_of_step(step, rows_per_step=rows_per_step, num_rows=source.num_rows, seed=config.seed)
        size = config.micro_batch_rows
        starts = range(0, len(indices), size)
        batches += [source.batch(indices[start : start + size]).varlen() for start in starts]
    return batches


def _optimize(
    model: "PreTrainedModel",
    optimizers: Optimizers,
    batches: list[VarlenBatch],
    step: int,
    vocabulary: int,
    config: InstructConfig,
    workspace: Workspace,
) -> dict[str, float]:
    """One optimizer step; returns its mean loss over valid tokens."""
    machine = workspace.machine
    # ---------------------------------------------------------------------------------------------------------
    denominator = weight_of(batches)
    loss = 0.0
    for real in batches:
        result = fused_linear_loss(
            hidden_states(model, real, machine),
            head_weight(model),
            real.targets_M.to(machine.torch_device),
            real.weights_M.to(machine.torch_device),
            _plain,
            vocabulary=vocabulary,
            denominator=max(denominator, TINY_WEIGHT),
            chunk_tokens=config.chunk_tokens,
            compute_dtype=machine.torch_dtype,
        )
        result.loss.backward()
        require_finite_logits(result.logit_sums, step=step + 1)
        loss += float(result.loss.detach())
    factor = schedule(step, config.steps, config.optim)
    require_finite(loss, 0.0, step=step + 1)
    norm = optimizers.step(factor) if denominator > 0 else optimizers.skip()
    # ---------------------------------------------------------------------------------------------------------
    require_finite(loss, norm, step=step + 1)
    return {"loss": loss, "gradient_norm": norm, "learning_rate": config.optim.learning_rate * factor}


@stage(version=7)
def instruct(
    config: InstructConfig, workspace: Workspace, base: Path, conversations: Path, replay: Path | None
) -> dict[str, Any]:
    """Tune a checkpoint on packed conversations and write the one that is best by held-out assistant loss.

    Args:
        config: the run.
        workspace: folder and machine.
        base: model folder to start from.
        conversations: a folder of `instruct.conversations`.
        replay: a folder of `distill.corpus` to replay from, or None.

    Raises:
        UserError: settings that contradict each other or the data, a loss that is not finite.
    """
    model, tokenizer = load_model(base, workspace.machine), Tokenizer.load(base)
    rows = _open_rows(config, model, tokenizer, conversations, replay)
    optimizers = Optimizers(model, config.optim, workspace.machine.torch_dtype)
    keeper = Keeper(workspace.folder, model, optimizers)
    found = keeper.resume()
    values: dict[str, Any] = {"tokens": 0, "seconds": 0.0} if found is None else found.values
    first = 0 if found is None else found.step
    log = MetricsLog(workspace.folder, resume_after_step=first)
    model.train()
    steps = range(first, config.steps)
    read = partial(micro_batches, rows, config)
    started = time.perf_counter()
    for step, batches in progress(prefetched(read, steps), label="chat", unit="step", total=len(steps)):
        means = _optimize(model, optimizers, batches, step, tokenizer.size, config, workspace)
        tokens = sum(len(real.tokens_M) for real in batches)
        seconds = time.perf_counter() - started
        values["tokens"] += tokens
        values["seconds"] += seconds
        done = step + 1
        log.write({"step": done, **means, "tokens": values["tokens"], "tokens_per_s": tokens / seconds})
        if done % config.validate_every == 0 or done == config.steps:
            held_out = held_out_loss(model, rows.validation, workspace.machine, vocabulary=tokenizer.size, step=done)
            keeper.offer(done, held_out)
            log.write({"step": done, "validation_loss": held_out})
        if done % config.checkpoint_every == 0 or done == config.steps:
            keeper.save(done, values)
        started = time.perf_counter()  # waiting for the next batches counts, validation does not
    keeper.restore_best()
    save_model(model, tokenizer, workspace.folder, dtype=getattr(torch, config.save_dtype))
    propagate_sources(workspace.folder, "corpus", replay, base)
    propagate_sources(workspace.folder, "conversations", conversations, workspace.folder)
    return {
        "method": "instruct",
        "steps": config.steps,
        "tokens": values["tokens"],
        "tokens_per_s": values["tokens"] / max(values["seconds"], 1e-9),
        "parameters": model.num_parameters(),
        "best_step": keeper.best_step,
        "validation_loss": keeper.best_loss,
    }
