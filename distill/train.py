"""Distillation: text and a frozen teacher to a base checkpoint. Without a teacher the same loop pre-trains.

`python -m distill train --student DIR --corpus DIR --out DIR [--teacher DIR]`. The stage reads packed rows, keeps the
weights that are best on the validation split and resumes from its own last checkpoint. Several processes may run it
together (`common.launch`). Methods are known only by name (`distill.methods`).
"""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from common.checkpoint import save_model
from common.chunk_passes import InPlace, Objective
from common.errors import UserError, require_above, require_at_least, require_between
from common.launch import Distributed
from common.metrics import MetricsLog, progress
from common.model_loss import ModelLoss
from common.optim import OptimConfig, Optimizers
from common.outcome import teacher_warnings, training_outcome
from common.packing import PackedRows, VarlenBatch, rows_of_step
from common.provenance import propagate_sources
from common.source_shares import drawn_shares, mix_warnings, require_limit, sources_of
from common.store import Workspace, say, stage
from common.tokenizer import Tokenizer
from common.training import (
    held_out_loss,
    mean_loss,
    open_rows,
    optimizer_step,
    prefetched,
    require_finite,
    row_losses,
)
from common.training_state import CheckpointManager, TrainingState
from distill.controllers import Controller, CtkdConfig, State, controller_of
from distill.initial import InitConfig, open_student
from distill.methods import LossPass, Settings, method, pass_name, require_kernel, require_loss_pass, require_settings
from distill.on_policy import OnPolicy, OnPolicyConfig
from distill.taid import TaidConfig, alpha_warning
from distill.teacher import open_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPARED_ROWS = 32
"""Held-out rows on which teacher and student are compared: enough to see exchanged arguments, cheap for any teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """One training run on text."""

    method: str = "cross_entropy"
    """Name of a method in `distill.methods.METHODS`."""
    settings: Settings = ()
    """The method's own settings that differ from their defaults: (name, value) in the order of the names."""
    taid: TaidConfig = field(default_factory=TaidConfig)
    """The interpolation's settings; read by methods that interpolate."""
    ctkd: CtkdConfig = field(default_factory=CtkdConfig)
    """The learnt temperature's settings; read by `ctkd` alone."""
    temperature: float = 1.0
    """Divides both sides' logits before the method's loss, which is multiplied by its square; 1 for `ctkd`."""
    lm_weight: float = 0.0
    """Share of the language-modelling loss on the text itself in the loss, 0 to 1."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    on_policy: OnPolicyConfig | None = None
    """Batches of the student's own responses, mixed in; None uses the corpus alone."""
    init: InitConfig | None = None
    """Config of an untrained student; None where a student folder is given."""
    corpus_tokens: int | None = None
    """Read only the first rows of train that hold this many tokens, in epochs; None reads all of train."""
    loss_weights: Literal["as packed", "uniform"] = "as packed"
    """`uniform` gives every supervised token the weight 1, whatever weight it was packed with."""
    steps: int = 1000
    """Optimizer steps."""
    rows_per_step: int = 8
    """Packed rows of one optimizer step."""
    micro_batch_rows: int = 8
    """Packed rows of one forward pass."""
    validate_every: int = 100
    """Optimizer steps between two validations; the last step always validates."""
    checkpoint_every: int = 100
    """Optimizer steps between two checkpoints to resume from."""
    chunk_tokens: int | None = None
    """Tokens whose logits exist at once; None takes 512, in bfloat16 on a CPU 1024."""
    loss_pass: LossPass = "auto"
    """How the loss is computed from a chunk's logits: affects speed, and a result's last digits."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the checkpoint's weights."""
    seed: int = 0
    """Seed of the order of the rows."""

    def __post_init__(self) -> None:
        chosen = method(self.method)
        require_settings(self.method, self.settings)
        require_loss_pass(self.method, self.loss_pass, temperature=self.temperature, lm_weight=self.lm_weight)
        require_between(0, 1, lm_weight=self.lm_weight)
        require_above(0, temperature=self.temperature)
        if self.temperature != 1.0 and not chosen.supports_temperature:
            wanted = "temperature 1 for methods without a teacher or with a learnt temperature"
            got, next_step = f"{self.temperature:g} for {self.method}", "leave the temperature out"
            raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)
        if self.on_policy is not None and (not chosen.needs_teacher or self.lm_weight > 0.0):
            wanted, next_step = "a method with a teacher, and lm_weight 0, for on_policy", "leave on_policy out"
            got = f"{self.method}, lm_weight {self.lm_weight:g}: the student's own responses would count as text"
            raise UserError("contradiction", wanted=wanted, got=got, next_step=next_step)
        require_at_least(1, steps=self.steps, rows_per_step=self.rows_per_step, micro_batch_rows=self.micro_batch_rows)
        require_at_least(1, validate_every=self.validate_every, checkpoint_every=self.checkpoint_every)
        require_at_least(1, chunk_tokens=self.chunk_tokens, corpus_tokens=self.corpus_tokens)

    def objective(self, kwargs: dict[str, float]) -> Objective | InPlace:
        """The loss of one optimizer step, with the keyword arguments of the method's controller."""
        chosen = method(self.method)
        if self.loss_pass == "triton":
            return chosen.kernel(kwargs)
        return chosen.objective(kwargs, self.settings, temperature=self.temperature, lm_weight=self.lm_weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What one training run works with."""

    config: DistillConfig
    loss: ModelLoss
    teacher: "PreTrainedModel | None"
    wrapped: nn.Module
    """The loss, its gradients the same in every process."""
    optimizers: Optimizers
    checkpoints: CheckpointManager
    tokenizer: Tokenizer
    rows: PackedRows
    validation: PackedRows
    distributed: Distributed
    on_policy: OnPolicy | None

    def read(self, step: int) -> list[VarlenBatch]:
        """This process's micro-batches of one optimizer step; may run ahead of it, in a thread."""
        config, rows = self.config, self.rows
        of_all = rows_of_step(step, rows_per_step=config.rows_per_step, num_rows=rows.num_rows, seed=config.seed)
        batches = rows.micro_batches(self.distributed.shard(of_all), config.micro_batch_rows)
        if config.loss_weights == "uniform":
            return [replace(batch, weights_M=(batch.weights_M > 0).float()) for batch in batches]
        return batches


def _open(
    config: DistillConfig, workspace: Workspace, corpus: Path, student: Path | None, teacher: Path | None
) -> _Run:
    """Load and check everything before the first step."""
    machine = workspace.machine
    require_kernel(config.loss_pass, machine.device)
    distributed = Distributed(machine.device)  # first: it decides which GPU is this process's
    packed = corpus / "packed"
    PackedRows(packed / "train")  # a folder of another kind is refused before a model is loaded
    model, tokenizer = open_student(student, config.init, corpus, machine)
    rows = open_rows(packed / "train", model, tokenizer, limit_tokens=config.corpus_tokens)
    run_tokens = config.steps * config.rows_per_step * rows.sequence_tokens
    require_limit(sources_of(corpus), config.corpus_tokens, run_tokens=run_tokens)
    validation = open_rows(packed / "validation", model, tokenizer)
    signal = open_teacher(config.method, teacher, tokenizer, machine)
    loss = ModelLoss(
        model,
        signal,
        vocab_size=tokenizer.size,
        machine=machine,
        chunk_tokens=config.chunk_tokens,
        loss_pass=pass_name(config.loss_pass),
    )
    optimizers = Optimizers(model, config.optim, machine.torch_dtype)
    return _Run(
        config=config,
        loss=loss,
        teacher=None if signal is None else signal.model,
        wrapped=distributed.wrap(loss),
        optimizers=optimizers,
        checkpoints=CheckpointManager(workspace.folder, model, optimizers, writes=distributed.is_main),
        tokenizer=tokenizer,
        rows=rows,
        validation=validation,
        distributed=distributed,
        on_policy=OnPolicy(config.on_policy, model, tokenizer, machine, seed=config.seed) if config.on_policy else None,
    )


def _before_the_first_step(run: _Run) -> dict[str, Any]:
    """The held-out loss, and what speaks against alpha and the teacher, compared on at most `_COMPARED_ROWS` rows."""
    student, distributed, rows = run.loss.model, run.distributed, run.validation
    measured = partial(row_losses, rows=rows, machine=run.loss.machine, vocab_size=run.loss.vocab_size)
    mine = range(distributed.rank, rows.num_rows, distributed.size)
    of_student = measured(student, indices=mine)
    before, config = mean_loss(of_student, distributed), run.config
    alpha = alpha_warning(config.taid, steps=config.steps) if method(config.method).controller == "taid" else None
    warnings = [] if alpha is None else [alpha]
    require_finite({"validation loss of the model": before}, step=0)
    if run.teacher is not None:
        num_compared = math.ceil(_COMPARED_ROWS / distributed.size)
        supervised = [pair for pair in zip(mine, of_student, strict=True) if pair[1][1] > 0][:num_compared]
        of_teacher = measured(run.teacher, indices=[index for index, _ in supervised])
        teacher_loss = mean_loss(of_teacher, distributed)
        require_finite({"validation loss of the teacher": teacher_loss}, step=0)
        warnings += teacher_warnings(
            teacher_parameters=run.teacher.num_parameters(),
            student_parameters=student.num_parameters(),
            teacher_loss=teacher_loss,
            student_loss=mean_loss([losses for _, losses in supervised], distributed),
        )
    return {"held_out_before": before, "warnings": warnings}


def _train(run: _Run, controller: Controller, folder: Path) -> tuple[dict[str, Any], State]:
    """All steps that are left; returns the counters over all starts of the run, and the controller's last state."""
    config, checkpoints, on_policy, distributed = run.config, run.checkpoints, run.on_policy, run.distributed
    start = checkpoints.resume() or TrainingState(step=0, values={"controller": None, "tokens": 0, "seconds": 0.0})
    values, steps = start.values, range(start.step, config.steps)
    state = controller.initial() if values["controller"] is None else controller.load_state(values["controller"])
    log = MetricsLog(folder, resume_after_step=start.step) if distributed.is_main else None
    if start.step == 0:
        values |= _before_the_first_step(run)
        if log:
            log.write({"step": 0, "validation_loss": values["held_out_before"]})
            for warning in values["warnings"]:
                say(f"warning: {warning}")
    if on_policy and start.step > 0:
        on_policy.load_state(values)
    elif on_policy and on_policy.adapts:
        on_policy.validated(values["held_out_before"])
    run.loss.model.train()
    started = time.perf_counter()
    for step, batches in progress(prefetched(run.read, steps), label=config.method, unit="step", total=len(steps)):
        done, kwargs = step + 1, controller.kwargs(state)
        if on_policy:
            place = {"step": step, "steps": config.steps, "rank": distributed.rank}
            batches = [on_policy.mix_in_rollouts(real, index=index, **place) for index, real in enumerate(batches)]
        objective, optim = config.objective(kwargs), config.optim
        result = optimizer_step(
            batches, run.wrapped, objective, run.optimizers, distributed, step=step, steps=config.steps, optim=optim
        )
        if not result.is_skipped:
            state = controller.update(state, result.means, step=done, steps=config.steps)
        seconds = time.perf_counter() - started
        if not result.is_skipped:
            values |= {"first_loss": values.get("first_loss", result.means["loss"]), "last_loss": result.means["loss"]}
        values["tokens"] += result.tokens
        values["seconds"] += seconds
        if log:
            metrics = kwargs | controller.metrics(state) | (on_policy.metrics() if on_policy else {})
            speed = {"tokens": values["tokens"], "tokens_per_s": result.tokens / seconds}
            log.write({"step": done, **result.means, **metrics, **speed})
        if done % config.validate_every == 0 or done == config.steps:
            held_out = held_out_loss(run.loss, run.validation, distributed, step=done)
            checkpoints.keep_if_best(done, held_out)
            if on_policy:
                on_policy.validated(held_out)
            if log:
                log.write({"step": done, "validation_loss": held_out})
        if done % config.checkpoint_every == 0 or done == config.steps:
            saved = {"controller": state and asdict(state)} | (on_policy.state() if on_policy else {})
            checkpoints.save(done, values | saved)
        started = time.perf_counter()  # from here on: waiting for the next batches counts, validation does not
    return values, state


@stage(version=9)
def distill(
    config: DistillConfig, workspace: Workspace, corpus: Path, student: Path | None, teacher: Path | None
) -> dict[str, Any]:
    """Train a student on packed text and write the checkpoint that is best by validation.

    `corpus` is a folder of `distill.corpus`, or of `instruct.conversations`, where only the assistant's tokens count.
    A `student` of None is built from `config.init`; `teacher` is the frozen model, where the method needs one.
    UserError for settings that contradict each other or the data, and for a loss that is not finite.
    """
    run, chosen = _open(config, workspace, corpus, student, teacher), method(config.method)
    controller = controller_of(chosen, config.taid, config.ctkd, lm_weight=config.lm_weight)
    values, state = _train(run, controller, workspace.folder)
    if run.distributed.is_main:
        run.checkpoints.restore_best()
        save_model(run.loss.model, run.tokenizer, workspace.folder, dtype=getattr(torch, config.save_dtype))
        propagate_sources(workspace.folder, "corpus", corpus, student, teacher)
    run.distributed.barrier()
    outcome = training_outcome(
        values,
        held_out_after=run.checkpoints.best_loss,
        best_step=run.checkpoints.best_step,
        first_validation=config.validate_every,
        steps=config.steps,
        vocab_size=run.loss.vocab_size,
    )
    tokens = run.rows.drawn_tokens(steps=config.steps, rows_per_step=config.rows_per_step, seed=config.seed)
    drawn = drawn_shares(sources_of(corpus), tokens)
    return outcome | {
        "method": config.method,
        "steps": config.steps,
        "tokens": values["tokens"],
        "corpus_tokens": run.rows.num_tokens,
        "tokens_per_s": values["tokens"] / max(values["seconds"], 1e-9),
        "parameters": run.loss.model.num_parameters(),
        "t_final": controller.kwargs(state).get("t"),
        "drawn": drawn,
        "warnings": [*values["warnings"], *outcome["warnings"], *mix_warnings(drawn)],
    }
