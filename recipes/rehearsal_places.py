"""Where a rehearsal's two models lie: on one GPU that holds both, or on two, by what the plan says that they need.

It looks at sizes only and asks no device.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from common.errors import UserError
from common.model_shape import ModelShape

if TYPE_CHECKING:
    from recipes.stages.gpu_steps import GpuStepsConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Which CUDA device holds which model; None where there is but one device that needs no number."""

    student: int | None = None
    teacher: int | None = None


def places_of(config: "GpuStepsConfig", student: ModelShape, memory_bytes: Sequence[int]) -> Places:
    """Where the models of these steps lie.

    Args:
        config: the steps, with the teacher's geometry.
        student: the student's.
        memory_bytes: of each CUDA device.

    Raises:
        UserError: as `choose_places`.
    """
    from recipes.plan.cost import gpu_bytes, teacher_bytes

    run = planned(config, student)
    return choose_places(memory_bytes, teacher_bytes=teacher_bytes(run), least_bytes=gpu_bytes(run))


def planned(config: "GpuStepsConfig", student: ModelShape) -> Any:
    """The steps as a plan counts them."""
    from recipes.plan.cost import Run

    teacher = ModelShape.of(config.teacher.fields())
    return Run(
        stage="gpu_steps",
        student=student,
        teacher=teacher,
        vocab_size=min(student.padded_vocab_size, teacher.padded_vocab_size),
        steps=config.steps,
        rows_per_step=config.micro_batches * config.documents,
        sequence_tokens=config.most_tokens,
        micro_batch_rows=config.documents,
        chunk_tokens=config.chunk_tokens,
        saved_dtype_bytes=0,
    )


def choose_places(memory_bytes: Sequence[int], *, teacher_bytes: int, least_bytes: int) -> Places:
    """Both models on the largest device, or the teacher there and the student on the second largest.

    Args:
        memory_bytes: of each CUDA device.
        teacher_bytes: the teacher's weights.
        least_bytes: what both need together on one device.

    Raises:
        UserError: neither has room.
    """
    by_size = sorted(range(len(memory_bytes)), key=lambda index: -memory_bytes[index])
    if by_size and memory_bytes[by_size[0]] >= least_bytes:
        return Places(student=by_size[0], teacher=by_size[0])
    student_bytes = least_bytes - teacher_bytes
    if len(by_size) > 1 and sum(memory_bytes) >= least_bytes:
        first, second = by_size[:2]
        if memory_bytes[first] > teacher_bytes and memory_bytes[second] >= student_bytes:
            return Places(student=second, teacher=first)
    raise UserError(
        wanted=f"a CUDA device of {least_bytes / 1e9:.0f} GB or more, or one of more than {teacher_bytes / 1e9:.0f} GB "
        f"and a second one of {student_bytes / 1e9:.0f} GB or more",
        got=", ".join(f"{size / 1e9:.0f} GB" for size in memory_bytes) or "no CUDA device",
        next_step="run this part on such a machine; the other parts of the rehearsal need none",
    )


def on_device(place: int | None) -> contextlib.AbstractContextManager[Any]:
    """Makes a CUDA device the present one; None leaves it as it is."""
    return contextlib.nullcontext() if place is None else torch.cuda.device(place)
