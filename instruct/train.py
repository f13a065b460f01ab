"""Instruction tuning: a base checkpoint and rendered conversations to a chat checkpoint.

`python -m instruct train CHECKPOINT --conversations DIR --out DIR [--replay CORPUS]`. The loss counts the assistant's
turns only, by the mask that the rows were packed with. A share of every step may be replayed from the pre-training
text, with plain cross-entropy, so that the model keeps what it knows. There is no teacher: to distil on conversations,
use `distill` on their rows.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from common.checkpoint import load_model, save_model
from common.chunk_passes import ChunkResult
from common.divergences import cross_entropy
from common.errors import UserError, require_at_least
from common.launch import Distributed
from common.metrics import MetricsLog, progress
from common.model_loss import ModelLoss
from common.optim import OptimConfig, Optimizers
from common.outcome import training_outcome
from common.packing import PackedRows, VarlenBatch, rows_of_step
from common.provenance import is_text, propagate_sources
from common.source_shares import require_limit, sources_of
from common.store import Workspace, stage
from common.tokenizer import Tokenizer
from common.training import held_out_loss, open_rows, optimizer_step, prefetched
from common.training_state import CheckpointManager, TrainingState

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
    """Packed rows of one forward pass."""
    validate_every: int = 100
    """Optimizer steps between two validations; the last step always validates."""
    checkpoint_every: int = 100
    """Optimizer steps between two checkpoints to resume from."""
    chunk_tokens: int | None = None
    """Tokens whose logits exist at once; None takes 512, in bfloat16 on a CPU 1024."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the checkpoint's weights."""
    seed: int = 0
    """Seed of the order of the rows."""

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, rows_per_step=self.rows_per_step, micro_batch_rows=self.micro_batch_rows)
        require_at_least(1, validate_every=self.validate_every, checkpoint_every=self.checkpoint_every)
        require_at_least(1, chunk_tokens=self.chunk_tokens)
        require_at_least(0, replay_rows_per_step=self.replay_rows_per_step)


def _objective(student_CV: torch.Tensor, teacher_CV: torch.Tensor | None, targets_C: torch.Tensor) -> ChunkResult:
    """Cross-entropy as an objective."""
    return *cross_entropy(student_CV, targets_C), {}


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
        wanted, next_step = "replayed rows and a corpus to replay from, or neither", "give both or neither"
        got = f"{config.replay_rows_per_step} rows a step, corpus {replay}"
        raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)
    if is_text(conversations):
        wanted = "a folder of `python -m instruct conversations`, in which only the answers count"
        got, next_step = f"{conversations}, a corpus of text", "use `python -m distill train`, or --replay it"
        raise UserError("wrong-format", wanted=wanted, got=got, next_step=next_step)
    opened = partial(open_rows, model=model, tokenizer=tokenizer)
    replayed = replay and opened(replay / "packed" / "train", limit_tokens=config.replay_tokens)
    if replay and replayed:
        run_tokens = config.steps * config.replay_rows_per_step * replayed.sequence_tokens
        require_limit(sources_of(replay), config.replay_tokens, run_tokens=run_tokens, name="replay_tokens")
    return Rows(
        conversations=opened(conversations / "packed" / "train"),
        validation=opened(conversations / "packed" / "validation"),
        replay=replayed,
    )


def micro_batches(rows: Rows, config: InstructConfig, step: int) -> list[VarlenBatch]:
    """The micro-batches of one optimizer step: conversations first, then replayed text."""
    batches: list[VarlenBatch] = []
    for source, count in ((rows.conversations, config.rows_per_step), (rows.replay, config.replay_rows_per_step)):
        if source is not None:
            indices = rows_of_step(step, rows_per_step=count, num_rows=source.num_rows, seed=config.seed)
            batches += source.micro_batches(indices, config.micro_batch_rows)
    return batches


@stage(version=9)
def instruct(
    config: InstructConfig, workspace: Workspace, base: Path, conversations: Path, replay: Path | None
) -> dict[str, Any]:
    """Tune the model folder `base` and write the checkpoint that is best by held-out assistant loss.

    `conversations` is a folder of `instruct.conversations`; `replay` is one of `distill.corpus`, or None. UserError for
    settings that contradict each other or the data, and for a loss that is not finite.
    """
    machine, alone = workspace.machine, Distributed(None)
    model, tokenizer = load_model(base, machine), Tokenizer.load(base)
    rows = _open_rows(config, model, tokenizer, conversations, replay)
    loss = ModelLoss(model, None, vocab_size=tokenizer.size, machine=machine, chunk_tokens=config.chunk_tokens)
    optimizers = Optimizers(model, config.optim, machine.torch_dtype)
    checkpoints = CheckpointManager(workspace.folder, model, optimizers)
    start = checkpoints.resume() or TrainingState(step=0, values={"tokens": 0, "seconds": 0.0})
    values, steps = start.values, range(start.step, config.steps)
    log = MetricsLog(workspace.folder, resume_after_step=start.step)
    if start.step == 0:
        values["held_out_before"] = held_out_loss(loss, rows.validation, alone, step=0)
        log.write({"step": 0, "validation_loss": values["held_out_before"]})
    model.train()
    read = partial(micro_batches, rows, config)
    started = time.perf_counter()
    for step, batches in progress(prefetched(read, steps), label="chat", unit="step", total=len(steps)):
        done = step + 1
        result = optimizer_step(
            batches, loss, _objective, optimizers, alone, step=step, steps=config.steps, optim=config.optim
        )
        seconds = time.perf_counter() - started
        if not result.is_skipped:
            values |= {"first_loss": values.get("first_loss", result.means["loss"]), "last_loss": result.means["loss"]}
        values["tokens"] += result.tokens
        values["seconds"] += seconds
        speed = {"tokens": values["tokens"], "tokens_per_s": result.tokens / seconds}
        log.write({"step": done, **result.means, **speed})
        if done % config.validate_every == 0 or done == config.steps:
            held_out = held_out_loss(loss, rows.validation, alone, step=done)
            checkpoints.keep_if_best(done, held_out)
            log.write({"step": done, "validation_loss": held_out})
        if done % config.checkpoint_every == 0 or done == config.steps:
            checkpoints.save(done, values)
        started = time.perf_counter()  # waiting for the next batches counts, validation does not
    checkpoints.restore_best()
    save_model(model, tokenizer, workspace.folder, dtype=getattr(torch, config.save_dtype))
    propagate_sources(workspace.folder, "corpus", replay, base)
    propagate_sources(workspace.folder, "conversations", conversations, workspace.folder)
    outcome = training_outcome(
        values,
        held_out_after=checkpoints.best_loss,
        best_step=checkpoints.best_step,
        first_validation=config.validate_every,
        steps=config.steps,
        vocab_size=tokenizer.size,
    )
    return outcome | {
        "method": "instruct",
        "steps": config.steps,
        "tokens": values["tokens"],
        "tokens_per_s": values["tokens"] / max(values["seconds"], 1e-9),
        "parameters": model.num_parameters(),
    }
