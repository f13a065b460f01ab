"""Which device computes, and in which precision: measured once for a build folder, then read from its `machine.json`.

bfloat16 where a one-second comparison of matrix products says that it beats float32 by half (CUDA, AMX, avx512_bf16;
a processor without such units emulates it, several or hundreds of times slower), else float32. Weights stay float32
either way: `Machine.autocast` lowers only what is computed. It knows no model, and keeps no host, user or path.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.disk import replace_text
from common.errors import UserError

if TYPE_CHECKING:
    # torch takes seconds to load: whoever only reads a finished build's machine.json does without it.
    import torch

MIN_BFLOAT16_SPEEDUP = 1.5
_PROBE_SECONDS = 1.0
_SMALL, _LARGE = 256, 1536  # sides of the square matrices that are multiplied


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a stage computes on, as `machine.json`, every manifest and the report tell it."""

    device: str
    """"cpu", "cuda" or "mps"."""
    compute_dtype: str
    """"float32" or "bfloat16": what matrix products are computed in."""
    cpu: str
    """The processor's name."""
    gpu: str | None
    """The accelerator's name, or None."""
    memory_bytes: int
    """Main memory."""
    os: str
    """Operating system, its version and the processor's architecture."""
    threads: int
    """Threads that torch computes with."""

    @property
    def torch_device(self) -> "torch.device":
        """The device, checked to be there: UserError when this build folder was begun on a machine with another."""
        import torch

        available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        if self.device in available and not available[self.device]():
            raise UserError(
                wanted=f"the device {self.device} ({self.gpu}) that this build folder's machine.json names",
                got="a machine without it",
                next_step="delete machine.json to measure this machine, or build in another folder",
            )
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> "torch.dtype":
        """`compute_dtype` as torch's own."""
        import torch

        return torch.bfloat16 if self.compute_dtype == "bfloat16" else torch.float32

    def autocast(self) -> "torch.autocast":
        """The context in which a forward pass runs: torch's autocast to bfloat16, switched off for float32."""
        import torch

        enabled = self.compute_dtype == "bfloat16"
        return torch.autocast(device_type=self.device, dtype=torch.bfloat16, enabled=enabled)

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Machine":
        """The inverse of `to_json`; TypeError where a field is missing or unknown."""
        return cls(**fields)


def probe(record: Path) -> Machine:
    """The machine as `record` (a `machine.json`) tells it, or measured in about a second and written there.

    A record of another processor is measured again, since a build folder may have been moved, and so is one without a
    GPU where torch now sees one. Threads are this process's, unless it is one of several, to each of which the launcher
    gives one. UserError when the record is broken.
    """
    cpu = cpu_name()
    if record.exists():
        known = _read(record)
        torch = sys.modules.get("torch")  # not loaded for this alone
        if known.cpu == cpu and torch is None:
            return known
        if known.cpu == cpu and torch is not None and not (known.device == "cpu" and torch.cuda.is_available()):
            is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
            return replace(known, threads=torch.get_num_threads()) if is_alone else known
    machine = _measure(cpu)
    record.parent.mkdir(parents=True, exist_ok=True)
    replace_text(record, json.dumps(machine.to_json(), indent=2, ensure_ascii=False) + "\n")
    return machine


def _read(record: Path) -> Machine:
    try:
        return Machine.from_json(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            wanted=f"the machine's description in {record}",
            got=str(error),
            next_step="delete the file and start again",
        ) from error


def _measure(cpu: str) -> Machine:
    import torch

    device, gpu = "cpu", None
    if torch.cuda.is_available():
        device, gpu = "cuda", torch.cuda.get_device_name()
    elif torch.backends.mps.is_available():
        device, gpu = "mps", cpu  # one chip on Apple silicon
    return Machine(
        device=device,
        compute_dtype="bfloat16" if bfloat16_speedup(device) >= MIN_BFLOAT16_SPEEDUP else "float32",
        cpu=cpu,
        gpu=gpu,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        os=os_name(),
        threads=torch.get_num_threads(),
    )


def emulates_bfloat16() -> bool:
    """Whether this CPU is known to lack bfloat16 units (AMX, avx512_bf16); of all but x86 torch tells too little."""
    import torch

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return known.get("architecture") == "x86_64" and not (known.get("avx512_bf16") or known.get("amx_bf16"))


def bfloat16_speedup(device: str) -> float:
    """How many times faster than float32 a bfloat16 matrix product is on `device`; takes about a second."""
    import torch

    threads = torch.get_num_threads()
    # On one thread: where others keep the cores busy, threads that wait for one another would be what is measured.
    torch.set_num_threads(1)
    try:
        return _speedup(device)
    finally:
        torch.set_num_threads(threads)


def _speedup(device: str) -> float:
    small = _shortest_products(device, side=_SMALL, seconds=0.05)
    if small["bfloat16"] > 4 * small["float32"]:
        return small["float32"] / small["bfloat16"]  # emulated: a large product would take many seconds
    large = _shortest_products(device, side=_LARGE, seconds=_PROBE_SECONDS)
    return large["float32"] / large["bfloat16"]


def _shortest_products(device: str, *, side: int, seconds: float) -> dict[str, float]:
    """Shortest time of one product per precision, in seconds; both in turns, so that a busy moment hits both."""
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    matrices = {name: torch.ones(side, side, dtype=dtype, device=device) for name, dtype in dtypes.items()}
    synchronize = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    shortest = dict.fromkeys(dtypes, float("inf"))
    deadline = None
    while deadline is None or time.perf_counter() < deadline:
        for name, matrix in matrices.items():
            synchronize()
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            synchronize()
            # The first round warms up: libraries choose their kernels there.
            if deadline is not None:
                shortest[name] = min(shortest[name], time.perf_counter() - start)
        deadline = deadline or time.perf_counter() + seconds
    return shortest


def cpu_name() -> str:
    """The processor's name as the system tells it, else its architecture."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        name = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if name:
            return name[1].strip()
    return platform.machine()


def os_name() -> str:
    """Operating system, its version and the architecture, such as `Debian GNU/Linux 12 (bookworm), x86_64`."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}, {platform.machine()}"
    with contextlib.suppress(OSError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.machine()}"
    return f"{platform.system()}, {platform.machine()}"
