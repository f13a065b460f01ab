"""Distillation: text and a frozen teacher to a base checkpoint. Without a teacher the same loop pre-trains.

`python -m distill train --student DIR --corpus DIR --out DIR [--teacher DIR]`. The stage reads packed rows, keeps
the weights that are best on the validation split and resumes from its own last checkpoint. It knows objectives only
by name (`distill.objectives`) and the optimizer only as "step".
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from common.checkpoint import head_weight, hidden_states, load_model, save_model
from common.errors import UserError
from common.fused_linear_loss import DEFAULT_CHUNK_TOKENS, TeacherHead, fused_linear_loss
from common.metrics import MetricsLog, progress
from common.optim import OptimConfig, Optimizers, schedule
from common.packing import Batch, PackedRows, rows_of_step
from common.store import Workspace, say, stage
from common.tokenizer import Tokenizer
from common.training import (
    Keeper,
    mean_loss,
    real_tokens,
    require_finite,
    require_fit,
    require_valid_tokens,
    row_losses,
    weight_of,
)
from distill.initial import InitConfig, initial_model
from distill.objectives import method
from distill.taid import TaidConfig, TaidState, alpha_warning, initial_state, next_state
from distill.teacher import OnlineTeacher, TeacherSignal, require_same_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """One training run on text."""

    method: str = "cross_entropy"
    """Name of an objective in `distill.objectives.METHODS`."""
    taid: TaidConfig = field(default_factory=TaidConfig)
    """The interpolation's settings; read by `taid` only."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    init: InitConfig | None = None
    """Geometry of an untrained student; None where a student folder is given."""
    corpus_tokens: int | None = None
    """Only the first rows of train that hold this many tokens, in epochs; None reads all of train."""
    loss_weights: Literal["as packed", "uniform"] = "as packed"
    """`uniform` counts every real token once, whatever weight the corpus packed it with."""
    steps: int = 1000
    """Optimizer steps."""
    rows_per_step: int = 8
    """Packed rows of one optimizer step."""
    micro_batch_rows: int = 8
    """Packed rows that go through the model at one time."""
    validate_every: int = 100
    """Optimizer steps between two validations; the last step always validates."""
    checkpoint_every: int = 100
    """Optimizer steps between two checkpoints to resume from."""
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    """Tokens whose logits exist at one time."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the checkpoint's weights."""
    seed: int = 0
    """Seed of the order of the rows."""

    def __post_init__(self) -> None:
        method(self.method)
        counts = (self.steps, self.rows_per_step, self.micro_batch_rows, self.validate_every, self.checkpoint_every)
        if any(count < 1 for count in (*counts, self.chunk_tokens)):
            raise UserError(
                wanted="steps, rows, chunk and intervals of at least 1", got=f"{counts}", next_step="mend the settings"
            )
        if self.corpus_tokens is not None and self.corpus_tokens < 1:
            raise UserError(
                wanted="corpus_tokens of at least 1, or None",
                got=f"{self.corpus_tokens}",
                next_step="mend the settings",
            )


def _student(
    config: DistillConfig, workspace: Workspace, corpus: Path, student: Path | None
) -> tuple["PreTrainedModel", Tokenizer]:
    """The model to train and its tokenizer."""
    if (student is None) == (config.init is None):
        raise UserError(
            wanted="either a student folder or the geometry of an untrained one",
            got="both" if student else "neither",
            next_step="give exactly one of the two",
        )
    if student is not None:
        return load_model(student, workspace.machine), Tokenizer.load(student)
    assert config.init is not None
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    model = initial_model(config.init, tokenizer)
    return model.to(workspace.machine.torch_device), tokenizer  # pyright: ignore[reportArgumentType]


def _teacher(
    config: DistillConfig, workspace: Workspace, tokenizer: Tokenizer, folder: Path | None
) -> TeacherSignal | None:
    """The signal that the method needs, or None."""
    if method(config.method).needs_teacher != (folder is not None):
        raise UserError(
            wanted=f"{'a teacher' if folder is None else 'no teacher'} for method {config.method}",
            got="none" if folder is None else str(folder),
            next_step="name a teacher folder or another method",
        )
    if folder is None:
        return None
    require_same_vocabulary(tokenizer, folder)
    return OnlineTeacher(folder, workspace.machine)


def micro_batches(rows: PackedRows, step: int, config: DistillConfig) -> list[Batch]:
    """The micro-batches of one optimizer step."""
    indices = rows_of_step(step, rows_per_step=config.rows_per_step, num_rows=rows.num_rows, seed=config.seed)
    size = config.micro_batch_rows
    batches = [rows.batch(indices[start : start + size]) for start in range(0, len(indices), size)]
    if config.loss_weights == "uniform":
        return [replace(batch, weights_BT=(batch.weights_BT > 0).float()) for batch in batches]
    return batches


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What one training run works with."""

    model: "PreTrainedModel"
    tokenizer: Tokenizer
    rows: PackedRows
    validation: PackedRows
    teacher: TeacherSignal | None


def _optimize(
    run: _Run,
    optimizers: Optimizers,
    batches: list[Batch],
    t: float,
    step: int,
    config: DistillConfig,
    workspace: Workspace,
) -> dict[str, float]:
    """One optimizer step; returns its mean loss and the objective's further means."""
    machine = workspace.machine
    objective = method(config.method).objective(t)
    # ---------------------------------------------------------------------------------------------------------
    denominator = weight_of(batches)
    means: dict[str, float] = {"loss": 0.0}
    for batch in batches:
        hidden_BTD = hidden_states(run.model, batch, machine)
        signal: TeacherHead | None = None if run.teacher is None else run.teacher(batch)
        result = fused_linear_loss(
            hidden_BTD.flatten(0, 1),
            head_weight(run.model),
            batch.targets_BT.flatten().to(machine.torch_device),
            batch.weights_BT.flatten().to(machine.torch_device),
            objective,
            vocabulary=run.tokenizer.size,
            denominator=max(denominator, 1e-9),
            teacher=signal,
            chunk_tokens=config.chunk_tokens,
            compute_dtype=machine.torch_dtype,
        )
        result.loss.backward()
        means["loss"] += float(result.loss.detach())
        for name, total in result.sums.items():
            means[name] = means.get(name, 0.0) + float(total) / max(denominator, 1e-9)
    factor = schedule(step, config.steps, config.optim)
    require_finite(means["loss"], 0.0, step=step + 1)
    means["gradient_norm"] = optimizers.step(factor)
    # ---------------------------------------------------------------------------------------------------------
    require_finite(means["loss"], means["gradient_norm"], step=step + 1)
    means["learning_rate"] = config.optim.learning_rate * factor
    return means


def _open(
    config: DistillConfig, workspace: Workspace, corpus: Path, student: Path | None, teacher: Path | None
) -> _Run:
    """Load and check everything before the first step."""
    model, tokenizer = _student(config, workspace, corpus, student)
    rows = PackedRows(corpus / "packed" / "train", limit_tokens=config.corpus_tokens)
    rows.require(tokenizer)
    require_fit(model, tokenizer, rows.sequence_tokens)
    validation = PackedRows(corpus / "packed" / "validation")
    for opened, split in ((rows, "train"), (validation, "validation")):
        require_valid_tokens(opened, corpus / "packed" / split)
    return _Run(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        validation=validation,
        teacher=_teacher(config, workspace, tokenizer, teacher),
    )


@stage(version=1)
def distill(
    config: DistillConfig, workspace: Workspace, corpus: Path, student: Path | None, teacher: Path | None
) -> dict[str, Any]:
    """Train a student on packed text and write the checkpoint that is best by validation.

    Args:
        config: the run.
        workspace: folder and machine.
        corpus: a folder of `distill.corpus`.
        student: model folder to start from; None builds one from `config.init`.
        teacher: model folder of the frozen teacher, where the method needs one.

    Raises:
        UserError: settings that contradict each other or the data, a loss that is not finite.
    """
    run = _open(config, workspace, corpus, student, teacher)
    interpolates = method(config.method).interpolates
    warning = alpha_warning(config.taid, steps=config.steps) if interpolates else None
    if warning:
        say(f"warning: {warning}")
    optimizers = Optimizers(run.model, config.optim, workspace.machine.torch_dtype)
    keeper = Keeper(workspace.folder, run.model, optimizers)
    found = keeper.resume()
    values: dict[str, Any] = {"taid": None, "tokens": 0, "seconds": 0.0} if found is None else found.values
    taid = initial_state(config.taid) if values["taid"] is None else TaidState(**values["taid"])
    first = 0 if found is None else found.step
    log = MetricsLog(workspace.folder, resume_after_step=first)
    run.model.train()
    for step in progress(range(first, config.steps), label=config.method, unit="step", total=config.steps - first):
        started = time.perf_counter()
        batches = micro_batches(run.rows, step, config)
        means = _optimize(run, optimizers, batches, taid.t, step, config, workspace)
        done = step + 1
        if interpolates:
            means["t"] = taid.t
            watched = means["loss"] if config.taid.watches == "cross_entropy" else means["kl"]
            taid = next_state(taid, watched, step=done, steps=config.steps, config=config.taid)
        tokens, seconds = real_tokens(batches), time.perf_counter() - started
        values["tokens"] += tokens
        values["seconds"] += seconds
        log.write({"step": done, **means, "tokens": values["tokens"], "tokens_per_s": tokens / seconds})
        if done % config.validate_every == 0 or done == config.steps:
            losses = row_losses(run.model, run.validation, workspace.machine, vocabulary=run.tokenizer.size)
            held_out = mean_loss(losses)
            require_finite(held_out, 0.0, step=done)
            keeper.offer(done, held_out)
            log.write({"step": done, "validation_loss": held_out})
        if done % config.checkpoint_every == 0 or done == config.steps:
            values["taid"] = asdict(taid)
            keeper.save(done, values)
    keeper.restore_best()
    save_model(run.model, run.tokenizer, workspace.folder, dtype=getattr(torch, config.save_dtype))
    return {
        "method": config.method,
        "steps": config.steps,
        "tokens": values["tokens"],
        "corpus_tokens": run.rows.num_tokens,
        "tokens_per_s": values["tokens"] / max(values["seconds"], 1e-9),
        "parameters": run.model.num_parameters(),
        "best_step": keeper.best_step,
        "validation_loss": keeper.best_loss,
        "t_final": taid.t if interpolates else None,
        "warnings": [warning] if warning else [],
    }
