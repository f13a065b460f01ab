"""RECIPE=auto: which recipe this machine can hold, and why, in one line.

`python -m recipes auto`, which is what `make tinyswallow` runs, asks it. It starts no stage, loads no torch, and knows
of the release only how much room it takes.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30

TEACHER_PARAMETERS = 32_763_876_352
"""Qwen2.5-32B-Instruct. Counted from its published config.json: 64 layers, 5,120 wide, 27,648 inner, 40 query and 8
key-value heads of 128, embedding and head of 152,064 rows each."""
STUDENT_PARAMETERS = 1_543_714_304
"""Qwen2.5-1.5B. Counted likewise: 28 layers, 1,536 wide, 8,960 inner, 12 and 2 heads, one tied matrix of 151,936
rows."""

BF16_BYTES = 2
TRAINED_BYTES = 16
"""Bytes a trained parameter: float32 weight, gradient and the two moments of AdamW."""
SAVED_BYTES = 12
"""Bytes a parameter in a training checkpoint: the same without the gradient."""

ACTIVATION_BYTES = 8 * GIB
"""Hidden states and one chunk of both models' logits. An estimate: a chunk of 1,024 tokens is 0.58 GiB a tensor in
float32 at this vocabulary, and a step keeps up to ten of them."""
COREML_BYTES = 16_900_000_000
"""Peak memory of the Core ML conversion of a Qwen2.5-1.5B with states in float32: measured once, coremltools 9.0."""
SYSTEM_BYTES = 4 * GIB
"""Left to the system beside the conversion. An estimate."""
CHECKPOINTS = 2
"""Training checkpoints on disk at once: the last one, and the one that is being written."""
EXPORTED_COPIES = 6
"""bf16-sized models on disk at the end: student before, base, chat, GGUF F16, the smaller GGUFs together, Core ML."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Bytes that a machine has, or that a recipe needs."""

    gpu_bytes: int
    """Memory of all GPUs together: the release shards over them."""
    ram_bytes: int
    """Main memory, used or not."""
    disk_bytes: int
    """Free bytes where build/ lies. The release's text corpora are not counted: their stage is not built yet."""


def release_needs() -> Room:
    """What the release (Qwen2.5-32B distilled into 1.5B, both online) needs. Computed, not measured."""
    teacher_bytes = BF16_BYTES * TEACHER_PARAMETERS
    checkpoint_bytes = SAVED_BYTES * STUDENT_PARAMETERS
    return Room(
        gpu_bytes=teacher_bytes + TRAINED_BYTES * STUDENT_PARAMETERS + ACTIVATION_BYTES,
        ram_bytes=COREML_BYTES + SYSTEM_BYTES,
        disk_bytes=teacher_bytes + CHECKPOINTS * checkpoint_bytes + EXPORTED_COPIES * BF16_BYTES * STUDENT_PARAMETERS,
    )


def gpu_bytes() -> int:
    """Memory of all NVIDIA GPUs together, 0 where there is none or its driver does not answer."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    # A GPU without memory of its own answers [N/A].
    return sum(int(line) * 2**20 for line in answer.splitlines() if line.strip().isdigit())


def room_here(folder: Path) -> Room:
    """What this machine has, with the disk of `folder`."""
    return Room(
        gpu_bytes=gpu_bytes(),
        ram_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        disk_bytes=shutil.disk_usage(folder).free,
    )


def choose(here: Room) -> tuple[str, str]:
    """The recipe's name, and the line that says why."""
    needs = release_needs()
    rows = [
        ("GPU memory", needs.gpu_bytes, here.gpu_bytes),
        ("RAM", needs.ram_bytes, here.ram_bytes),
        ("disk", needs.disk_bytes, here.disk_bytes),
    ]
    compared = ", ".join(f"{needed / GIB:.0f} GiB of {what} (here {has / GIB:.0f})" for what, needed, has in rows)
    short = [what for what, needed, has in rows if has < needed]
    verdict = f"too little {' and '.join(short)} here, and" if short else "enough here, but"
    return (
        "mini",
        f"RECIPE=auto builds mini: the release needs {compared}: {verdict} mini is the one recipe there is yet",
    )
