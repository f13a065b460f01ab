"""`make plan`: what a recipe would cost, as data, before anything is downloaded or spent: a fold over its stage list.

`needs` has the needs of each stage, `cost` those of a training run, `gguf_bytes` the predicted type and size of each
tensor in a GGUF, `sets` what publishers give and ask; `machine` says what this machine has and what is built, `lines`
prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from common.provenance import Terms
from recipes.plan.cost import Gpu, Run, cpu_bytes, cpu_flop_per_s, fits, flops, gpu_bytes, largest_micro_batch
from recipes.plan.needs import PROCESS_BYTES, Known, StageNeeds, needs_of_stage
from recipes.plan.sets import Gate, Size
from recipes.recipe import Recipe, stages_until
from recipes.resolve import attempt

MACHINES = ((1, 24), (1, 80), (1, 141), (2, 80), (8, 24), (8, 80), (8, 141))
"""Number of GPUs and memory of each in GB, for which a plan says what fits."""
MOST_CPU_SECONDS = 7 * 24 * 3600
"""Training that an unnamed processor would finish within this needs no GPU."""
SYSTEM_BYTES, SYSTEM_SHARE = 4 * 2**30, 0.25
"""Main memory for the system: min(4 GiB, 25 % of the largest stage). An estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Whether all training runs fit in one process on `devices` GPUs of `memory_bytes` each."""

    devices: int
    memory_bytes: int
    fits: bool
    largest_micro_batch_rows: tuple[int, ...]
    """Of each run, 0 where not even one row fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a machine must have, and whether training needs a GPU at all."""

    gpu: bool
    gpu_bytes: int
    """Memory of one GPU that holds everything; 0 where none is needed."""
    ram_bytes: int
    """Of the stage `ram_for` (empty where none is known to take much) and `system_bytes`, left to the system."""
    system_bytes: int
    ram_for: str
    disk_bytes: int
    """The most, apart from the sets of unknown size, each of which adds to it."""
    disk_unknown: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a recipe would cost: the stages that are to be built, in order."""

    recipe: str
    stages: tuple[StageNeeds, ...]
    gpu_runs: tuple[Run, ...]
    """The runs whose models must fit on the GPUs, finished ones too where a later stage opens them again."""
    needs: Needs
    terms: tuple[Terms, ...]
    """Of everything that the build takes, models first."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """The training runs, in order."""
        return tuple(stage.run for stage in self.stages if stage.run)

    @property
    def downloads(self) -> tuple[Size, ...]:
        return tuple(download for stage in self.stages for download in stage.downloads)

    @property
    def gates(self) -> tuple[Gate, ...]:
        return tuple(gate for stage in self.stages for gate in stage.gates)

    @property
    def flops(self) -> float:
        return sum(flops(run).total for run in self.runs)

    @property
    def download_bytes(self) -> int:
        """Of all downloads whose size is known."""
        return sum(download.bytes or 0 for download in self.downloads)

    def hours(self, gpu: Gpu) -> float:
        """Hours of all training on one GPU, whether or not it fits there."""
        return gpu.hours(self.flops)

    def fits(self) -> tuple[Fit, ...]:
        """What fits on each of `MACHINES`, where anything is trained."""
        found: list[Fit] = []
        for devices, gigabytes in MACHINES if self.runs else ():
            memories = (gigabytes * 10**9,) * devices
            fit = all(fits(run, memories) for run in self.runs)
            rows = tuple(largest_micro_batch(run, memories) for run in self.runs)
            found.append(Fit(devices=devices, memory_bytes=memories[0], fits=fit, largest_micro_batch_rows=rows))
        return tuple(found)


def plan_of(
    recipe: Recipe,
    *,
    build_folder: Path | None,
    sources: Path | None,
    until: str | None = None,
    done: frozenset[str] = frozenset(),
) -> Plan:
    """The plan of a recipe, resolved or not, up to the artifact `until`; finished artifacts (`done`) cost nothing.

    `build_folder` is where an earlier build may have kept what it asked the hub for; the folder `sources` replaces the
    hub. Raises UserError for a published model whose shape is not known, or an unknown name in `until`.
    """
    if build_folder is not None and build_folder.is_dir():
        found, _ = attempt(recipe, build_folder, sources=sources, ask=False)
        recipe = replace(recipe, corpus=found.corpus, conversations=found.conversations)
    known = Known(recipe=recipe, sources=sources, build_folder=build_folder)
    stages = [needs_of_stage(stage, known) for stage in stages_until(recipe, until)]
    left = tuple(stage for stage in stages if stage.stage not in done)
    # The evaluation opens teacher and student again.
    opened = any(stage.run or stage.stage == "evaluation" for stage in left)
    gpu_runs = tuple(stage.run for stage in stages if stage.run and opened)
    models = [one for stage in stages if stage.stage in recipe.published_models for one in stage.terms]
    others = [one for stage in stages for one in stage.terms if one not in models]
    return Plan(
        recipe=recipe.name, stages=left, gpu_runs=gpu_runs, needs=_needs(left, gpu_runs), terms=(*models, *others)
    )


def _needs(stages: Sequence[StageNeeds], gpu_runs: Sequence[Run]) -> Needs:
    gpu = sum(flops(run).total for run in gpu_runs) > MOST_CPU_SECONDS * cpu_flop_per_s()
    ram: dict[str, int] = {}
    for stage in stages:
        ram[stage.stage] = stage.ram_bytes or 0
        if stage.run:
            # Weights go from their files straight to the GPU; the trained student comes back once, to be written.
            to_gpu = 4 * stage.run.student.parameters()
            ram[stage.stage] = PROCESS_BYTES + (to_gpu if gpu else cpu_bytes(stage.run))
    largest = max(ram.values(), default=0)
    system_bytes = min(SYSTEM_BYTES, round(SYSTEM_SHARE * largest))
    return Needs(
        gpu=gpu,
        gpu_bytes=max((gpu_bytes(run) for run in gpu_runs), default=0) if gpu else 0,
        ram_bytes=largest + system_bytes,
        system_bytes=system_bytes,
        ram_for=max(ram, key=ram.__getitem__) if largest else "",
        disk_bytes=peak_disk_bytes(stages),
        disk_unknown=tuple(one.name for stage in stages if stage.kept for one in stage.reads if one.bytes is None),
    )


def peak_disk_bytes(stages: Sequence[StageNeeds]) -> int:
    """The most on the disk at once where all that stages keep stays; dist/ has hard links to it and adds little."""
    kept = accumulate(stage.kept_bytes for stage in stages)
    return max((before + stage.scratch_bytes for before, stage in zip(kept, stages, strict=True)), default=0)
