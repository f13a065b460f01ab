"""`make plan`: what a recipe would cost, as data, before anything is downloaded or spent.

    plan = plan_of(tinyswallow(), build_folder=Path("build"), sources=None)

Operations, hours, memory, disk, downloads, licences: computed from the recipe's numbers and the models' shapes by
`plan_training`, `plan_files` and `plan_data`, and put together here. `plan_text` prints it, `preflight` decides by it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.plan_data import Download, Gate, TermsToAccept, downloads, gates, terms_to_accept
from recipes.plan_files import PROCESS_BYTES, StageRoom, peak_disk_bytes, stage_rooms
from recipes.plan_training import (
    Gpu,
    Operations,
    Part,
    cpu_bytes,
    cpu_flop_per_s,
    fits,
    gpu_bytes,
    gpu_parts,
    largest_micro_batch,
    operations,
)
from recipes.plan_work import Run, Work, work_of

if TYPE_CHECKING:
    from recipes.recipe import Recipe

MACHINES = ((1, 24), (1, 80), (1, 141), (2, 80), (8, 24), (8, 80), (8, 141))
"""GPUs, and the memory of each in GB, for which a plan says what fits."""
MOST_CPU_SECONDS = 7 * 24 * 3600
"""Training that an unnamed processor would finish within this needs no GPU."""
SYSTEM_BYTES, SYSTEM_SHARE = 4 * 2**30, 0.25
"""Main memory left to the system beside the largest stage: at most so much, and no more than this share of the stage's
own. An estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """One training run."""

    run: Run
    operations: Operations
    gpu_parts: tuple[Part, ...]
    """Peak memory of one GPU that holds everything."""

    @property
    def gpu_bytes(self) -> int:
        return sum(part.bytes for part in self.gpu_parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Whether all training runs have room on some GPUs, in one process."""

    devices: int
    memory_bytes: int
    """Of each."""
    fits: bool
    largest_micro_batch_rows: tuple[int, ...]
    """Of each run, 0 where not even one row has room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a machine must have."""

    gpu: bool
    """Whether training needs a GPU at all."""
    gpu_bytes: int
    """Memory of one GPU that holds everything; 0 where none is needed."""
    ram_bytes: int
    """Of the largest stage, and what is left to the system."""
    system_bytes: int
    ram_for: str
    """The stage that takes most main memory; empty where none is known to take much."""
    disk_bytes: int
    """At most, where everything that is packed has a known size."""
    disk_unknown: tuple[str, ...]
    """Sets whose sizes nobody knows yet; each adds to the disk."""
    has_sets: bool
    """Whether published sets of text or conversations are packed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a recipe would cost."""

    recipe: str
    trainings: tuple[TrainingPlan, ...]
    rooms: tuple[StageRoom, ...]
    """Disk and main memory by stage."""
    fits: tuple[Fit, ...]
    gpu_runs: tuple[Run, ...]
    """The runs whose models must find room on the GPUs, finished ones too where these are opened again."""
    needs: Needs
    downloads: tuple[Download, ...]
    gates: tuple[Gate, ...]
    terms: tuple[TermsToAccept, ...]

    @property
    def operations(self) -> float:
        """Of all training."""
        return sum(training.operations.total for training in self.trainings)

    @property
    def download_bytes(self) -> int:
        """Of everything whose size is known."""
        return sum(download.bytes or 0 for download in self.downloads)

    def hours(self, gpu: Gpu) -> float:
        """Hours of all training on one GPU, whether or not it fits there."""
        return gpu.hours(self.operations)


def plan_of(
    recipe: "Recipe",
    *,
    build_folder: Path,
    sources: Path | None,
    until: str | None = None,
    done: frozenset[str] = frozenset(),
) -> Plan:
    """The plan of a recipe, or of what is left of it.

    Args:
        recipe: any.
        build_folder: where an earlier build may have left what it asked the hub for.
        sources: the folder that stands in for the hub, or None.
        until: the last artifact wanted; None plans them all.
        done: artifacts that are finished, and cost nothing any more.

    Raises:
        UserError: a published model whose geometry is not to be had, or an unknown name in `until`.
    """
    from recipes.recipe import names_of, reached

    stages, names = reached(recipe, until), names_of(recipe, until)
    left = [stage for stage in stages if stage not in done]
    whole = work_of(recipe, sources=sources, build_folder=build_folder).of_stages(stages)
    work = whole.of_stages(left)
    instructions = names.conversations if "conversations" in left else ()
    return Plan(
        recipe=recipe.name,
        trainings=tuple(
            TrainingPlan(run=run, operations=operations(run), gpu_parts=gpu_parts(run)) for run in work.runs
        ),
        rooms=tuple(room for room in stage_rooms(whole) if room.stage in left),
        fits=tuple(_fit(work, devices, gigabytes * 10**9) for devices, gigabytes in MACHINES if work.runs),
        gpu_runs=whole.gpu_runs(left),
        needs=needs_of(whole, stages=left),
        downloads=() if sources is not None else downloads(work, names, instructions, left, build_folder=build_folder),
        gates=gates(instructions, sources=sources),
        terms=terms_to_accept(names),
    )


def needs_of(work: Work, *, stages: Collection[str] | None = None) -> Needs:
    """What a machine must have for it.

    Args:
        work: a recipe in numbers.
        stages: the artifacts that are to be made; None makes them all.
    """
    gpu_runs = work.gpu_runs(stages)
    gpu = sum(operations(run).total for run in gpu_runs) > MOST_CPU_SECONDS * cpu_flop_per_s()
    rooms = [room for room in stage_rooms(work) if stages is None or room.stage in stages]
    demands = {room.stage: room.ram_bytes or 0 for room in rooms}
    work = work if stages is None else work.of_stages(stages)
    for run in work.runs:
        # Weights go from their files straight to the GPU; the trained student comes back once, to be written.
        to_gpu = 4 * run.student.parameters()
        demands[run.stage] = PROCESS_BYTES + (to_gpu if gpu else cpu_bytes(run))
    most = max(demands, key=lambda stage: demands[stage], default="")
    ram_bytes = demands.get(most, 0)
    system_bytes = min(SYSTEM_BYTES, round(SYSTEM_SHARE * ram_bytes))
    return Needs(
        gpu=gpu,
        gpu_bytes=max((gpu_bytes(run) for run in gpu_runs), default=0) if gpu else 0,
        ram_bytes=ram_bytes + system_bytes,
        system_bytes=system_bytes,
        ram_for=most,
        disk_bytes=peak_disk_bytes(rooms),
        has_sets=bool(work.text or work.talks),
        disk_unknown=tuple(one.name for one in (*work.text, *work.talks) if one.bytes is None),
    )


def _fit(work: Work, devices: int, memory_bytes: int) -> Fit:
    memories = (memory_bytes,) * devices
    return Fit(
        devices=devices,
        memory_bytes=memory_bytes,
        fits=all(fits(run, memories) for run in work.runs),
        largest_micro_batch_rows=tuple(largest_micro_batch(run, memories) for run in work.runs),
    )
