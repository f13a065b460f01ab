"""What this machine has for a build, and which artifacts are built: GPUs, main memory, disk, finished stages.

In a container the whole machine is not what counts: `CUDA_VISIBLE_DEVICES` hides GPUs, a control group limits memory.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.disk import files_under, free_bytes
from common.errors import UserError
from common.store import Artifact, Store
from recipes.recipe import STAGES, Recipe, pipeline, prepared
from recipes.resolve import attempt


@dataclass(frozen=True, kw_only=True, slots=True)
class Available:
    """What a machine has: memory of each GPU in the order in which programs number them, main memory used or not."""

    gpus_bytes: tuple[int, ...]
    ram_bytes: int
    disk_bytes: int
    """Free bytes on the disk of the build folder, and what the unfinished artifacts of this build occupy there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildState:
    """Which artifacts of a recipe are built or half built in the build folder."""

    finished: frozenset[str] = frozenset()
    partial_bytes: int = 0
    """Of unfinished artifacts, each file once; files that are links into SOURCES are not counted."""


def available_here(build_folder: Path, *, partial_bytes: int = 0) -> Available:
    """What this machine has for a build in that folder, which need not exist yet.

    `partial_bytes` of unfinished artifacts count as free: a build that goes on must not be refused for its first half.
    """
    disk_bytes = free_bytes(build_folder) + partial_bytes
    return Available(gpus_bytes=gpus_bytes(), ram_bytes=ram_bytes(), disk_bytes=disk_bytes)


def build_state(recipe: Recipe, build_folder: Path, *, sources: Path | None) -> BuildState:
    """What a start with the present numbers would find, as far as the lock in the build folder resolves names.

    Artifacts of other recipes and of earlier numbers are ignored. An artifact whose config still holds a name has a
    key that no build made, so it counts as not built, and so does everything that reads it.
    """
    if not build_folder.is_dir():
        return BuildState()
    resolved, _ = attempt(recipe, build_folder, sources=sources, ask=False)
    artifacts = _expected(resolved, build_folder)
    local = [model.files for model in resolved.published_models.values() if isinstance(model.files, tuple)]
    linked = {_identity(path) for files in local for path in files}
    folders = [artifact.folder.with_name(artifact.folder.name + ".partial") for artifact in artifacts.values()]
    sizes = {_identity(path): path.stat().st_size for folder in folders for path in files_under(folder)}
    return BuildState(
        finished=frozenset(name for name, artifact in artifacts.items() if artifact.manifest),
        partial_bytes=sum(size for identity, size in sizes.items() if identity not in linked),
    )


def _expected(recipe: Recipe, build_folder: Path) -> dict[str, Artifact]:
    """The artifacts that a start would find or make; those to be made have an empty manifest."""
    store, made = Store(build_folder), dict[str, Artifact]()
    for stage in pipeline(recipe):
        # Benchmark files that are not there yet have no content to make a key of; what reads them is not built either.
        with suppress(UserError, KeyError):
            config, inputs = prepared(stage, made)
            made[stage.name] = store.expected(stage.name, STAGES[type(config)], config, *inputs)
    return made


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def gpus_bytes() -> tuple[int, ...]:
    """Memory of each NVIDIA GPU that programs see; none where there is none or its driver does not answer."""
    command = ["nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = [tuple(part.strip() for part in line.split(",")) for line in answer.splitlines() if line.count(",") == 1]
    # A GPU without memory of its own answers [N/A].
    gpus = [(uuid, int(size) * 2**20 if size.isdigit() else 0) for uuid, size in found]
    return tuple(size for size in _visible(gpus) if size)


def _visible(gpus: list[tuple[str, int]]) -> Iterator[int]:
    """Of `(uuid, memory)` the memories that CUDA_VISIBLE_DEVICES leaves, in its order.

    Without CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA numbers unlike GPUs by speed, and this driver's tool by their slots.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(gpus)))))
    for word in map(str.strip, visible.split(",")):
        if word.isdigit() and int(word) < len(gpus):
            named = [gpus[int(word)][1]]
        else:
            named = [size for uuid, size in gpus if word and uuid.startswith(word)]
        if len(named) != 1:
            return  # as CUDA does: what comes after a word that names no GPU is not seen either
        yield named[0]


def ram_bytes(system: Path = Path("/")) -> int:
    """Main memory that this process may use: the machine's, or less where a control group in `system` says so."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits(system)])


def _limits(system: Path) -> Iterator[int]:
    """Every limit of the control groups that this process is in, of version 2 and 1, up to their roots."""
    try:
        groups = (system / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # no Linux
    for group in groups:
        _, controllers, path = [*group.split(":", 2), "", ""][:3]
        base, name = system / "sys" / "fs" / "cgroup", "memory.max"
        if "memory" in controllers.split(","):
            base, name = base / "memory", "memory.limit_in_bytes"
        elif controllers:
            continue
        inside = base / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if not folder.is_relative_to(base):
                break
            # In a container its own group is the root, whatever the path says: a folder may be missing.
            text = (folder / name).read_text(encoding="ascii").strip() if (folder / name).is_file() else ""
            if text.isdigit():
                yield int(text)
