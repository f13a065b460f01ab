"""The stage `gpu_steps`: optimizer steps of TAID with a teacher of the release's size, timed part by part.

The step, teacher, controller and optimizers are those of `distill`. Rows are random tokens and the teacher has random
weights, made where they compute: the cost of a step does not depend on them. No weights are written or kept.
"""

import contextlib
import json
import logging
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.checkpoint import load_model, new_model, spread_map
from common.device import Machine, matmul_rate, synchronized_time
from common.errors import require_at_least
from common.fused_linear_loss import DEFAULT_CHUNK_TOKENS, TeacherHead
from common.launch import Distributed
from common.metrics import progress
from common.model_loss import ModelLoss
from common.model_shape import ModelShape, step_flops
from common.optim import OptimConfig, Optimizers
from common.packing import VarlenBatch
from common.store import Workspace, not_here, stage
from common.tokenizer import Tokenizer
from common.training import optimizer_step
from distill.controllers import CtkdConfig, controller_of
from distill.initial import InitConfig
from distill.methods import method
from distill.on_policy import Rollout, pack_rollouts
from distill.taid import TaidConfig
from distill.teacher import OnlineTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CPU_SIDE = 256  # of the probe's matrices; a CPU is used by tests only
_TRAINED_BYTES, _FROZEN_BYTES = 16, 2
"""Of a parameter: float32 weight, gradient and AdamW's two moments; or a bfloat16 weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuStepsConfig:
    """The teacher's shape, and the number and size of the steps."""

    teacher: InitConfig
    """Shape and seed; the weights are random and never written."""
    steps: int = 20
    """Optimizer steps."""
    warm_up_steps: int = 2
    """The first of them, which are not timed: libraries choose their kernels there."""
    micro_batches: int = 4
    """Forward passes of one optimizer step."""
    documents: int = 1
    """Documents of one forward pass."""
    least_tokens: int = 1024
    """Shortest document."""
    most_tokens: int = 2048
    """Longest document."""
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    """Tokens whose logits exist at once."""
    taid: TaidConfig = field(default_factory=TaidConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    """Of the rows."""

    def __post_init__(self) -> None:
        correct = "correct the recipe"
        require_at_least(1, micro_batches=self.micro_batches, documents=self.documents, next_step=correct)
        require_at_least(1, chunk_tokens=self.chunk_tokens, next_step=correct)
        require_at_least(0, warm_up_steps=self.warm_up_steps, next_step=correct)
        require_at_least(2, least_tokens=self.least_tokens, next_step=correct)
        require_at_least(self.least_tokens, most_tokens=self.most_tokens, next_step=correct)
        require_at_least(self.warm_up_steps + 1, steps=self.steps, next_step=correct)


def missing_memory(config: GpuStepsConfig, student: ModelShape | None, memory_bytes: Sequence[int]) -> str | None:
    """Why GPUs of this memory cannot hold the weights of the two models and the optimizer's state, or None.

    The student (None counts the teacher alone) is on the first GPU; the teacher's layers are spread over all of them.
    """
    if not memory_bytes:
        return "no CUDA device"
    student_bytes = 0 if student is None else _TRAINED_BYTES * student.parameters()
    needed = student_bytes + _FROZEN_BYTES * ModelShape.of(config.teacher.fields()).parameters()
    if memory_bytes[0] >= student_bytes and sum(memory_bytes) >= needed:
        return None
    found = ", ".join(f"{size / 1e9:.0f} GB" for size in memory_bytes)
    return (
        f"GPU memory of {found}; the models need {needed / 1e9:.0f} GB, {student_bytes / 1e9:.0f} GB on the first GPU"
    )


def _memory_bytes() -> list[int]:
    return [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]


@stage(version=2, can_run=lambda config: missing_memory(config, None, _memory_bytes()))
def gpu_steps(config: GpuStepsConfig, workspace: Workspace, student: Path) -> dict[str, Any]:
    """Run the steps on this machine's GPUs and write nothing but facts.

    Returns and raises as `measure`, or returns `not_here`, the reason why this machine cannot run them.
    """
    shape = ModelShape.of(json.loads((student / "config.json").read_text(encoding="utf-8")))
    reason = missing_memory(config, shape, _memory_bytes() if workspace.machine.device == "cuda" else [])
    if reason:
        return not_here(reason)
    try:
        return measure(config, workspace.machine, student)
    except torch.OutOfMemoryError as error:
        return not_here(f"too little GPU memory for activations and logits: {str(error).splitlines()[0]}")


def measure(config: GpuStepsConfig, machine: Machine, student: Path) -> dict[str, Any]:
    """The steps themselves, on the machine's device.

    Returns:
        `tokens_per_s` and `seconds` of a step by part (`teacher`, `student` forward and loss, `backward`, `optimizer`)
        over the timed steps; `matmul_share` of `product_flop_per_s`, the rate of a large matrix product here, counting
        the products that real tokens need; `peak_gpu_bytes` of each GPU; `steps`, `tokens` of all steps, `first_loss`,
        `last_loss`, `teacher_parameters`, `student_parameters`. UserError for a teacher with fewer logits than the
        tokenizer has ids, and for a loss that is not finite.
    """
    gpus = range(torch.cuda.device_count()) if machine.device == "cuda" else range(0)
    for index in gpus:
        torch.cuda.reset_peak_memory_stats(index)
    run = _Run(config, machine, student)
    rows = [run.rows(step) for step in range(config.steps)]
    losses = [run.step(step, rows[step]) for step in progress(range(config.steps), label="taid", unit="steps")]
    rate = matmul_rate(machine.torch_dtype, machine.torch_device, side=None if machine.device == "cuda" else _CPU_SIDE)
    timed = range(config.warm_up_steps, config.steps)
    tokens = [sum(len(real.tokens_M) for real in batches) for batches in rows]
    seconds = run.timer.means(timed)
    total_s = sum(seconds.values()) * len(timed)
    return {
        "tokens_per_s": sum(tokens[step] for step in timed) / total_s,
        "seconds": seconds,
        "matmul_share": sum(run.flops(rows[step]) for step in timed) / total_s / rate,
        "product_flop_per_s": rate,
        "peak_gpu_bytes": [torch.cuda.max_memory_allocated(index) for index in gpus],
        "steps": config.steps,
        "tokens": sum(tokens),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "teacher_parameters": run.teacher.parameters(),
        "student_parameters": run.student.parameters(),
    }


class _Timer:
    """Seconds of each part of each step; waits for the devices at both ends of a part."""

    def __init__(self, machine: Machine) -> None:
        self._device = machine.device
        self.steps: list[dict[str, float]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Generator[None]:
        """Add the seconds of the block to `name`; those of the teacher, which runs in the student's, are taken off."""
        start = synchronized_time(self._device, every_gpu=True)
        yield
        seconds = synchronized_time(self._device, every_gpu=True) - start
        self.steps[-1][name] += seconds
        if name == "teacher":
            self.steps[-1]["student"] -= seconds

    def means(self, steps: Sequence[int]) -> dict[str, float]:
        """Mean seconds of each part over these steps."""
        return {name: sum(self.steps[step][name] for step in steps) / len(steps) for name in self.steps[-1]}


class _Run:
    """The two models, and one optimizer step of them."""

    def __init__(self, config: GpuStepsConfig, machine: Machine, student: Path) -> None:
        tokenizer = Tokenizer.load(student)
        config.teacher.require_logits(tokenizer)
        self._config, self._vocab_size, self.timer = config, tokenizer.size, _Timer(machine)
        model = load_model(student, machine).train()
        teacher = random_teacher(config.teacher, machine)
        signal = OnlineTeacher(teacher, machine)

        def timed_signal(real: VarlenBatch) -> TeacherHead:
            with self.timer.part("teacher"):
                return signal(real)

        self._loss = ModelLoss(
            model, timed_signal, vocab_size=tokenizer.size, machine=machine, chunk_tokens=config.chunk_tokens
        )
        self._optimizers = Optimizers(model, config.optim, machine.torch_dtype)
        self._controller = controller_of(method("taid"), config.taid, CtkdConfig())
        self._state = self._controller.initial()
        self.student, self.teacher = (ModelShape.of(one.config.to_dict()) for one in (model, teacher))

    def rows(self, step: int) -> list[VarlenBatch]:
        """The micro-batches of a step: random tokens, documents of random length, every token supervised."""
        config = self._config
        generator = torch.Generator().manual_seed(config.seed * config.steps + step)

        def draw(low: int, high: int, count: int) -> list[int]:
            return torch.randint(low, high, (count,), generator=generator).tolist()

        lengths = [
            draw(config.least_tokens, config.most_tokens + 1, config.documents) for _ in range(config.micro_batches)
        ]
        documents = [[tuple(draw(0, self._vocab_size, length)) for length in batch] for batch in lengths]
        return [pack_rollouts([Rollout(ids=ids, prompt_tokens=1) for ids in batch]) for batch in documents]

    def step(self, step: int, batches: Sequence[VarlenBatch]) -> float:
        """One optimizer step as in `distill.train`; its mean loss."""
        config, objective = self._config, method("taid").objective(self._controller.kwargs(self._state))
        self.timer.steps.append(defaultdict(float))
        means = optimizer_step(
            batches,
            self._loss,
            objective,
            self._optimizers,
            Distributed(None),
            step=step,
            steps=config.steps,
            optim=config.optim,
            timer=self.timer.part,
        ).means
        self._state = self._controller.update(self._state, means, step=step + 1, steps=config.steps)
        return means["loss"]

    def flops(self, batches: Sequence[VarlenBatch]) -> float:
        """Floating-point operations of the matrix products of one step."""
        lengths = [length for real in batches for length in real.lengths]
        models = ((self.student, 3), (self.teacher, 1))
        return sum(step_flops(shape, lengths, vocab_size=self._vocab_size, passes=passes) for shape, passes in models)


def random_teacher(config: InitConfig, machine: Machine) -> "PreTrainedModel":
    """An untrained model, made in the dtype and on the devices that compute it: in float32 it would not fit there."""
    device_map = spread_map(machine)
    torch.manual_seed(config.seed)
    if device_map is not None:
        return spread_model(config, machine, device_map)
    with machine.torch_device:
        return new_model(config.fields(), dtype=machine.torch_dtype).eval()


def spread_model(config: InitConfig, machine: Machine, device_map: str) -> "PreTrainedModel":
    """An untrained model over several devices, placed by accelerate as `common.checkpoint.load_model` does."""
    with torch.device("meta"):
        shapes = new_model(config.fields())
    logging.disable(logging.WARNING)  # transformers reports every weight that it draws as missing
    try:
        return (
            type(shapes)
            .from_pretrained(
                None,
                config=shapes.config,
                state_dict={},  # nothing is loaded: each weight is drawn on its own device
                dtype=machine.torch_dtype,
                attn_implementation="sdpa",
                device_map=device_map,
            )
            .eval()
        )
    finally:
        logging.disable(logging.NOTSET)
