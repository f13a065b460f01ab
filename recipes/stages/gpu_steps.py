"""The stage `gpu_steps`: optimizer steps of TAID with a teacher of the release's size, timed part by part.

Loss, teacher, controller and optimizers are those of `distill`; only the loop stands here, because it waits for the
device between the parts. Rows are random tokens and the teacher's weights random numbers, made where they are used:
what a step costs does not depend on them. It writes no weights and keeps none.
"""

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.checkpoint import head_weight, load_model
from common.device import Machine
from common.errors import UserError
from common.fused_linear_loss import DEFAULT_CHUNK_TOKENS, TeacherHead
from common.metrics import progress
from common.model_shape import ModelShape
from common.optim import OptimConfig, Optimizers, schedule
from common.packing import VarlenBatch
from common.product_rate import LargeProducts
from common.store import Workspace, stage
from common.tokenizer import Tokenizer
from common.training import require_finite, require_finite_logits, weight_of
from distill.controllers import driver_of
from distill.ctkd import CtkdConfig
from distill.initial import InitConfig
from distill.methods import method
from distill.on_policy import Written, pack_rollouts
from distill.student_loss import StudentLoss
from distill.taid import TaidConfig
from distill.teacher import OnlineTeacher
from recipes.rehearsal_places import Places, on_device, places_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PRODUCT_ROUNDS = 5
_CPU_SIDE = 256  # a CPU is there for tests only


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuStepsConfig:
    """The teacher's geometry and how much is run."""

    teacher: InitConfig
    """ModelShape and seed; its weights are random and never written."""
    steps: int = 20
    """Optimizer steps."""
    warm_up_steps: int = 2
    """The first of them, which no time counts: libraries choose their kernels there."""
    micro_batches: int = 4
    """Passes of one optimizer step."""
    documents: int = 1
    """Documents of one pass."""
    least_tokens: int = 1024
    """Shortest document."""
    most_tokens: int = 2048
    """Longest document."""
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    """Tokens whose logits exist at one time."""
    taid: TaidConfig = field(default_factory=TaidConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    """Of the rows."""

    def __post_init__(self) -> None:
        counts = (self.micro_batches, self.documents, self.chunk_tokens, self.least_tokens - 1)
        if not 0 <= self.warm_up_steps < self.steps or min(counts) < 1 or self.least_tokens > self.most_tokens:
            raise UserError(
                wanted="more steps than warm-up steps, passes and documents of at least 1, documents of 2 tokens or "
                "more, the shortest no longer than the longest",
                got=f"{self.steps} steps, {self.warm_up_steps} of warm-up, {self.micro_batches} passes of "
                f"{self.documents} documents of {self.least_tokens} to {self.most_tokens} tokens",
                next_step="correct the recipe",
            )


def has_room(config: GpuStepsConfig, student: InitConfig) -> bool:
    """Whether this machine's GPUs hold the teacher and a student of this geometry."""
    try:
        places_of(config, ModelShape.of(student.fields()), _memory_bytes())
    except UserError:
        return False
    return True


def _memory_bytes() -> list[int]:
    return [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]


@stage(version=2)
def gpu_steps(config: GpuStepsConfig, workspace: Workspace, student: Path) -> dict[str, Any]:
    """Runs the steps on this machine's GPUs and writes nothing but its facts.

    Returns:
        As `measure`.

    Raises:
        UserError: no CUDA, or less memory on its devices than the two models need.
    """
    memory_bytes = _memory_bytes() if workspace.machine.device == "cuda" else []
    geometry = ModelShape.of(json.loads((student / "config.json").read_text(encoding="utf-8")))
    return measure(config, workspace.machine, student, places_of(config, geometry, memory_bytes))


def measure(config: GpuStepsConfig, machine: Machine, student: Path, places: Places) -> dict[str, Any]:
    """The steps themselves, on whatever device the machine names.

    Returns:
        `tokens_per_s` and `seconds` of a step by part (`teacher`, `student` forward and loss, `backward`, `optimizer`)
        over the steps that count; `matmul_share` of `product_flop_per_s`, what a large product reaches here, counting
        the products that real tokens need; `peak_gpu_bytes` of each GPU in use; `steps`, `tokens` of all steps,
        `first_loss`, `last_loss`, `teacher_parameters`, `student_parameters`.

    Raises:
        UserError: a teacher with fewer logits than the tokenizer has ids, a loss that is not finite.
    """
    devices = sorted({place for place in (places.student, places.teacher) if place is not None})
    for index in devices:
        torch.cuda.reset_peak_memory_stats(index)
    with on_device(places.student):
        run = _Run(config, machine, student, places)
        rows = [run.rows(step) for step in range(config.steps)]
        losses = [run.step(step, rows[step]) for step in progress(range(config.steps), label="taid", unit="steps")]
        rate = _product_rate(machine)
    counted = range(config.warm_up_steps, config.steps)
    tokens = [sum(len(real.tokens_M) for real in batches) for batches in rows]
    seconds = run.clock.means(counted)
    total_s = sum(seconds.values()) * len(counted)
    operations = sum(run.operations(rows[step]) for step in counted)
    return {
        "tokens_per_s": sum(tokens[step] for step in counted) / total_s,
        "seconds": seconds,
        "matmul_share": operations / total_s / rate,
        "product_flop_per_s": rate,
        "peak_gpu_bytes": [torch.cuda.max_memory_allocated(index) for index in devices],
        "steps": config.steps,
        "tokens": sum(tokens),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "teacher_parameters": run.teacher_parameters,
        "student_parameters": run.student_parameters,
    }


class _Clock:
    """Seconds of each part of each step; waits for the devices at both ends of a part."""

    def __init__(self, machine: Machine) -> None:
        self._cuda = machine.device == "cuda"
        self._steps: list[dict[str, float]] = []

    def begin_step(self) -> None:
        self._steps.append(defaultdict(float))

    @contextlib.contextmanager
    def part(self, name: str, *, within: str | None = None) -> Generator[None]:
        """Adds what happens inside to `name`, and takes it off `within`, the part that surrounds it."""
        start = self._now()
        yield
        seconds = self._now() - start
        self._steps[-1][name] += seconds
        if within:
            self._steps[-1][within] -= seconds

    def _now(self) -> float:
        for index in range(torch.cuda.device_count() if self._cuda else 0):
            torch.cuda.synchronize(index)
        return time.perf_counter()

    def means(self, steps: Sequence[int]) -> dict[str, float]:
        """Mean seconds of each part over these steps."""
        return {name: sum(self._steps[step][name] for step in steps) / len(steps) for name in self._steps[-1]}


class _TimedTeacher:
    """The online teacher on its own device, timed; hands its view over to the student's."""

    def __init__(self, model: "PreTrainedModel", machine: Machine, place: int | None, clock: _Clock) -> None:
        self._teacher, self._place, self._clock = OnlineTeacher(model, machine), place, clock
        self._home = machine.torch_device if place is None else torch.device("cuda", torch.cuda.current_device())
        self._weight_WE = head_weight(model).to(self._home)

    def __call__(self, real: VarlenBatch) -> TeacherHead:
        with self._clock.part("teacher", within="student"):
            with on_device(self._place):
                head = self._teacher(real)
            return TeacherHead(hidden_NE=head.hidden_NE.to(self._home), weight_WE=self._weight_WE)


class _Run:
    """The two models, and one optimizer step of them."""

    def __init__(self, config: GpuStepsConfig, machine: Machine, student: Path, places: Places) -> None:
        tokenizer = Tokenizer.load(student)
        self._config, self._vocabulary, self.clock = config, tokenizer.size, _Clock(machine)
        with on_device(places.teacher):
            teacher = random_teacher(config.teacher, machine)
        if head_weight(teacher).size(0) < tokenizer.size:
            raise UserError(
                wanted=f"a teacher with at least the tokenizer's {tokenizer.size} logits",
                got=str(head_weight(teacher).size(0)),
                next_step="raise vocab_size in the teacher's config",
            )
        model = load_model(student, machine).train()
        signal = _TimedTeacher(teacher, machine, places.teacher, self.clock)
        self._loss = StudentLoss(
            model, signal, vocabulary=tokenizer.size, chunk_tokens=config.chunk_tokens, machine=machine
        )
        self._optimizers = Optimizers(model, config.optim, machine.torch_dtype)
        self._driver = driver_of(method("taid"), config.taid, CtkdConfig())
        self._state = self._driver.initial()
        self._geometries = (ModelShape.of(model.config.to_dict()), ModelShape.of(teacher.config.to_dict()))
        self.student_parameters, self.teacher_parameters = model.num_parameters(), teacher.num_parameters()

    def rows(self, step: int) -> list[VarlenBatch]:
        """The micro-batches of a step: random tokens, documents of random length, each of them learnt from whole."""
        config = self._config
        generator = torch.Generator().manual_seed(config.seed * config.steps + step)

        def draw(low: int, high: int, count: int) -> list[int]:
            return torch.randint(low, high, (count,), generator=generator).tolist()

        lengths = [
            draw(config.least_tokens, config.most_tokens + 1, config.documents) for _ in range(config.micro_batches)
        ]
        documents = [[tuple(draw(0, self._vocabulary, length)) for length in batch] for batch in lengths]
        return [pack_rollouts([Written(ids=ids, prompt_tokens=1) for ids in batch]) for batch in documents]

    def step(self, step: int, batches: Sequence[VarlenBatch]) -> float:
        """One optimizer step as in `distill.train`; its mean loss."""
        config, clock = self._config, self.clock
        clock.begin_step()
        objective = method("taid").objective(self._driver.arguments(self._state))
        denominator, sums = weight_of(batches), defaultdict[str, float](float)
        for real in batches:
            with clock.part("student"):
                result = self._loss(real, objective, denominator)
            with clock.part("backward"):
                result.loss.backward()
            require_finite_logits(result.logit_sums, step=step + 1)
            sums["loss"] += float(result.loss.detach())
            for name, total in result.sums.items():
                sums[name] += float(total) / denominator
        with clock.part("optimizer"):
            norm = self._optimizers.step(schedule(step, config.steps, config.optim))
        require_finite(sums["loss"], norm, step=step + 1)
        self._state = self._driver.after(self._state, sums, step=step + 1, steps=config.steps)
        return sums["loss"]

    def operations(self, batches: Sequence[VarlenBatch]) -> float:
        """Floating-point operations of the products of one step."""
        from recipes.plan.gguf_bytes import step_operations

        lengths = [length for real in batches for length in real.lengths]
        student, teacher = self._geometries
        return step_operations(student, lengths, vocabulary=self._vocabulary, passes=3) + step_operations(
            teacher, lengths, vocabulary=self._vocabulary, passes=1
        )


def random_teacher(config: InitConfig, machine: Machine) -> "PreTrainedModel":
    """An untrained model made on the device in the dtype in which it computes: in float32 it would not fit there."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = config.fields()
    model_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(config.seed)
    with machine.torch_device:
        model: Any = AutoModelForCausalLM.from_config(
            model_config, dtype=machine.torch_dtype, attn_implementation="sdpa"
        )
    return model.eval()


def _product_rate(machine: Machine) -> float:
    """Floating-point operations a second of a large product on the present device, the fastest of a few rounds."""
    side = None if machine.device == "cuda" else _CPU_SIDE
    products = LargeProducts(machine.torch_dtype, machine.torch_device, side=side)
    clock = _Clock(machine)
    for _ in range(_PRODUCT_ROUNDS):
        clock.begin_step()
        with clock.part("products"):
            products()
    return products.operations / min(clock.means([number])["products"] for number in range(_PRODUCT_ROUNDS))
