"""What this machine has for a build: GPUs that a process sees, main memory that it may take, room on the disk.

In a container the whole machine is not what counts: `CUDA_VISIBLE_DEVICES` hides GPUs, a control group limits memory.
It loads no torch.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.disk import free_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What a machine has."""

    gpus_bytes: tuple[int, ...]
    """Memory of each GPU, in the order in which programs number them."""
    ram_bytes: int
    """Main memory, used or not."""
    disk_bytes: int
    """Free bytes where the build folder lies, and what this build has there half done."""


def room_here(build_folder: Path, *, done_bytes: int = 0) -> Room:
    """What this machine has for a build in that folder, which need not be there yet.

    Args:
        build_folder: where.
        done_bytes: of what is there half done: a build that goes on must not be refused for the room that its own first
            half takes.
    """
    return Room(gpus_bytes=gpus_bytes(), ram_bytes=ram_bytes(), disk_bytes=free_bytes(build_folder) + done_bytes)


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
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        yield from (size for _, size in gpus)
        return
    for word in map(str.strip, said.split(",")):
        if word.isdigit() and int(word) < len(gpus):
            yield gpus[int(word)][1]
            continue
        named = [size for uuid, size in gpus if word and uuid.startswith(word)]
        if len(named) != 1:
            return  # as CUDA does: what comes after a word that names no GPU is not seen either
        yield named[0]


def ram_bytes(system: Path = Path("/")) -> int:
    """Main memory that this process may use: the machine's, or less where a control group says so.

    Args:
        system: where /proc and /sys lie.
    """
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
            with_limit = folder / name
            text = with_limit.read_text(encoding="ascii").strip() if with_limit.is_file() else ""
            if text.isdigit():
                yield int(text)
