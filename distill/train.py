"""Distillation: text and a frozen teacher to a base checkpoint. Without a teacher the same loop pre-trains.

`python -m distill train --student DIR --corpus DIR --out DIR [--teacher DIR]`. The stage reads packed rows, keeps
the weights that are best on the validation split and resumes from its own last checkpoint. It knows methods only by
name (`distill.methods`) and the optimizer only as "step". Several processes may run it together (`common.launch`).
"""

import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from common.checkpoint import TrainingState, save_model
from common.chunk_passes import InPlace, Objective
from common.device import Machine
from common.errors import UserError
from common.fused_linear_loss import LinearLoss
from common.launch import Team
from common.metrics import MetricsLog, progress
from common.optim import OptimConfig, Optimizers, schedule
from common.packing import PackedRows, VarlenBatch, rows_of_step
from common.prefetch import prefetched
from common.provenance import propagate_sources
from common.store import Workspace, say, stage
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
from distill.controllers import Driver, State, driver_of, saved
from distill.ctkd import CtkdConfig
from distill.initial import InitConfig, open_student
from distill.methods import LossPass, Settings, method, require_kernel, require_loss_pass, require_settings
from distill.on_policy import OnPolicy, OnPolicyConfig
from distill.student_loss import StudentLoss
from distill.taid import TaidConfig, alpha_warning
from distill.teacher import open_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COUNTS = ("steps", "rows_per_step", "micro_batch_rows", "validate_every", "checkpoint_every", "chunk_tokens")


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
    """The learnt temperature's settings; read by `ctkd` only."""
    temperature: float = 1.0
    """Divides both sides' logits before the method's loss, which is multiplied by its square; not for `ctkd`."""
    lm_weight: float = 0.0
    """Share of the language-modelling loss on the text itself in the loss, 0 to 1."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    on_policy: OnPolicyConfig | None = None
    """Responses that the student writes itself, mixed in; None learns from the corpus alone."""
    init: InitConfig | None = None
    """ModelShape of an untrained student; None where a student folder is given."""
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
    chunk_tokens: int | None = None
    """Tokens whose logits exist at one time; None takes 512, in bfloat16 on a CPU 1024."""
    loss_pass: LossPass = "auto"
    """How the loss is computed from a chunk's logits; they differ in speed, and in a result's last digits."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the checkpoint's weights."""
    seed: int = 0
    """Seed of the order of the rows."""

    def __post_init__(self) -> None:
        chosen = method(self.method)
        require_settings(self.method, self.settings)
        require_loss_pass(self.method, self.loss_pass, temperature=self.temperature, lm_weight=self.lm_weight)
        if not self.temperature > 0.0 or (self.temperature != 1.0 and not chosen.softens):
            raise UserError(
                wanted="a temperature above 0, and 1 for methods without a teacher or with a temperature of their own",
                got=f"{self.temperature:g} for {self.method}",
                next_step="mend the settings",
            )
        if self.on_policy is not None and (not chosen.needs_teacher or self.lm_weight > 0.0):
            raise UserError(
                wanted="a method with a teacher, and lm_weight 0, for responses that the student writes itself",
                got=f"{self.method}, lm_weight {self.lm_weight:g}: it would learn its own words as if they were text",
                next_step="leave on_policy out, or change the two",
            )
        if not 0.0 <= self.lm_weight <= 1.0:
            raise UserError(wanted="0 <= lm_weight <= 1", got=f"{self.lm_weight:g}", next_step="mend the settings")
        counts = {name: getattr(self, name) for name in (*_COUNTS, "corpus_tokens")}
        low = [f"{name} {count}" for name, count in counts.items() if count is not None and count < 1]
        if low:
            wanted = "steps, rows, tokens and intervals of at least 1"
            raise UserError(wanted=wanted, got=", ".join(low), next_step="mend the settings")

    def objective(self, arguments: dict[str, float]) -> Objective | InPlace:
        """The loss of one optimizer step, with what the method's driver gives it."""
        chosen = method(self.method)
        if self.loss_pass == "triton":
            return chosen.kernel(arguments)
        return chosen.objective(arguments, self.settings, temperature=self.temperature, lm_weight=self.lm_weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What one training run works with."""

    config: DistillConfig
    machine: Machine
    model: "PreTrainedModel"
    loss: nn.Module
    """`StudentLoss`, its gradients the same in every process."""
    optimizers: Optimizers
    keeper: Keeper
    tokenizer: Tokenizer
    rows: PackedRows
    validation: PackedRows
    team: Team
    on_policy: OnPolicy | None

    def read(self, step: int) -> list[VarlenBatch]:
        """This process's micro-batches of one optimizer step; may run ahead of it, in a thread."""
        config, rows, size = self.config, self.rows, self.config.micro_batch_rows
        of_all = rows_of_step(step, rows_per_step=config.rows_per_step, num_rows=rows.num_rows, seed=config.seed)
        own = self.team.own(of_all)
        batches = [rows.batch(own[start : start + size]) for start in range(0, len(own), size)]
        if config.loss_weights == "uniform":
            batches = [replace(batch, weights_BT=(batch.weights_BT > 0).float()) for batch in batches]
        return [batch.varlen() for batch in batches]

    def held_out(self, *, step: int) -> float:
        """Mean loss on the validation split."""
        size = self.tokenizer.size
        return held_out_loss(self.model, self.validation, self.machine, vocabulary=size, step=step, team=self.team)


def _optimize(run: _Run, batches: list[VarlenBatch], objective: Objective | InPlace, step: int) -> dict[str, float]:
    """One optimizer step; returns its mean loss, the objective's further means and its real tokens.

    Without a valid token in the whole step the loss is 0 and the weights stay as they are.
    """
    team, config = run.team, run.config
    # ---------------------------------------------------------------------------------------------------------
    if run.on_policy:
        place = {"step": step, "steps": config.steps, "rank": team.rank}
        batches = [run.on_policy.mixed(real, index=index, **place) for index, real in enumerate(batches)]
    weight = team.totals({"weight": weight_of(batches)})["weight"]
    denominator = max(weight, TINY_WEIGHT)
    sums, logit_sums = {"loss": 0.0}, defaultdict[str, float](float)
    for index, real in enumerate(batches):
        with team.accumulating(run.loss) if index + 1 < len(batches) else contextlib.nullcontext():
            # Gradients are averaged over the processes, and the loss is a sum over them.
            result: LinearLoss = run.loss(real, objective, denominator / team.size)
            result.loss.backward()
        for side, total in result.logit_sums.items():
            logit_sums[side] += float(total)
        sums["loss"] += float(result.loss.detach()) / team.size
        for name, total in result.sums.items():
            sums[name] = sums.get(name, 0.0) + float(total) / denominator
    means = team.totals(sums | {"tokens": sum(len(real.tokens_M) for real in batches)})
    require_finite_logits(team.totals(logit_sums), step=step + 1)
    require_finite(means["loss"], 0.0, step=step + 1)
    factor = schedule(step, config.steps, config.optim)
    means["gradient_norm"] = run.optimizers.step(factor) if weight > 0 else run.optimizers.skip()
    # ---------------------------------------------------------------------------------------------------------
    require_finite(means["loss"], means["gradient_norm"], step=step + 1)
    means["learning_rate"] = config.optim.learning_rate * factor
    means["valid_weight"] = weight
    return means


def _open(
    config: DistillConfig, workspace: Workspace, corpus: Path, student: Path | None, teacher: Path | None
) -> _Run:
    """Load and check everything before the first step."""
    machine = workspace.machine
    require_kernel(config.loss_pass, machine.device)
    team = Team(machine.device)  # first: it decides which GPU is this process's
    rows = PackedRows(corpus / "packed" / "train", limit_tokens=config.corpus_tokens)
    validation = PackedRows(corpus / "packed" / "validation")
    model, tokenizer = open_student(student, config.init, corpus, machine)
    rows.require(tokenizer)
    require_fit(model, tokenizer, rows.sequence_tokens)
    require_valid_tokens(rows, corpus / "packed" / "train")
    require_valid_tokens(validation, corpus / "packed" / "validation")
    signal = open_teacher(config.method, teacher, tokenizer, machine)
    loss = StudentLoss(
        model,
        signal,
        vocabulary=tokenizer.size,
        chunk_tokens=config.chunk_tokens,
        machine=machine,
        loss_pass=config.loss_pass,
    )
    optimizers = Optimizers(model, config.optim, machine.torch_dtype)
    return _Run(
        config=config,
        machine=machine,
        model=model,
        loss=team.in_step(loss),
        optimizers=optimizers,
        keeper=Keeper(workspace.folder, model, optimizers, writes=team.is_first),
        tokenizer=tokenizer,
        rows=rows,
        validation=validation,
        team=team,
        on_policy=OnPolicy(config.on_policy, model, tokenizer, machine, seed=config.seed) if config.on_policy else None,
    )


def _train(run: _Run, driver: Driver, folder: Path) -> tuple[dict[str, Any], State]:
    """All steps that are left; returns the counters over all starts of the run, and the driver's last state."""
    config, keeper, on_policy = run.config, run.keeper, run.on_policy
    start = keeper.resume() or TrainingState(step=0, values={"driver": None, "tokens": 0, "seconds": 0.0})
    values, steps = start.values, range(start.step, config.steps)
    state = driver.initial() if values["driver"] is None else driver.restored(values["driver"])
    if on_policy and start.step > 0:
        on_policy.restore(values)
    elif on_policy and on_policy.adapts:
        on_policy.validated(run.held_out(step=0))
    log = MetricsLog(folder, resume_after_step=start.step) if run.team.is_first else None
    run.model.train()
    started = time.perf_counter()
    for step, batches in progress(prefetched(run.read, steps), label=config.method, unit="step", total=len(steps)):
        done, arguments = step + 1, driver.arguments(state)
        means = _optimize(run, batches, config.objective(arguments), step)
        if means.pop("valid_weight") > 0:
            state = driver.after(state, means, step=done, steps=config.steps)
        shown = arguments | driver.shown(state) | (on_policy.shown() if on_policy else {})
        tokens, seconds = int(means.pop("tokens")), time.perf_counter() - started
        values["tokens"] += tokens
        values["seconds"] += seconds
        if log:
            log.write({"step": done, **means, **shown, "tokens": values["tokens"], "tokens_per_s": tokens / seconds})
        if done % config.validate_every == 0 or done == config.steps:
            held_out = run.held_out(step=done)
            keeper.offer(done, held_out)
            if on_policy:
                on_policy.validated(held_out)
            if log:
                log.write({"step": done, "validation_loss": held_out})
        if done % config.checkpoint_every == 0 or done == config.steps:
            keeper.save(done, values | {"driver": saved(state)} | (on_policy.saved() if on_policy else {}))
        started = time.perf_counter()  # from here on: waiting for the next batches counts, validation does not
    return values, state


@stage(version=7)
def distill(
    config: DistillConfig, workspace: Workspace, corpus: Path, student: Path | None, teacher: Path | None
) -> dict[str, Any]:
    """Train a student on packed text and write the checkpoint that is best by validation.

    Args:
        config: the run.
        workspace: folder and machine.
        corpus: a folder of `distill.corpus`, or of `instruct.conversations`: then the assistant's tokens alone count.
        student: model folder to start from; None builds one from `config.init`.
        teacher: model folder of the frozen teacher, where the method needs one.

    Raises:
        UserError: settings that contradict each other or the data, a loss that is not finite.
    """
    run, chosen = _open(config, workspace, corpus, student, teacher), method(config.method)
    driver = driver_of(chosen, config.taid, config.ctkd, lm_weight=config.lm_weight)
    warning = alpha_warning(config.taid, steps=config.steps) if chosen.driver == "taid" else None
    if warning and run.team.is_first:
        say(f"warning: {warning}")
    values, state = _train(run, driver, workspace.folder)
    if run.team.is_first:
        run.keeper.restore_best()
        save_model(run.model, run.tokenizer, workspace.folder, dtype=getattr(torch, config.save_dtype))
        propagate_sources(workspace.folder, "corpus", corpus, student, teacher)
    run.team.wait()
    return {
        "method": config.method,
        "steps": config.steps,
        "tokens": values["tokens"],
        "corpus_tokens": run.rows.num_tokens,
        "tokens_per_s": values["tokens"] / max(values["seconds"], 1e-9),
        "parameters": run.model.num_parameters(),
        "best_step": run.keeper.best_step,
        "validation_loss": run.keeper.best_loss,
        "t_final": driver.arguments(state).get("t"),
        "warnings": [warning] if warning else [],
    }
