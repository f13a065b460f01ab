"""Which device computes and in which precision: measured once for a build folder, then read from its `machine.json`.

bfloat16 where a one-second comparison of matrix products finds it 1.5 times as fast as float32 (CUDA, AMX,
avx512_bf16; a processor without such units emulates it, several or hundreds of times slower), else float32. The
environment variable TINYSWALLOW_PRECISION, `float32` or `bfloat16`, chooses instead of the comparison. Weights stay
float32: `Machine.autocast` lowers only what is computed. Records no host, user or path.
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
from common.errors import UserError, unknown_name

if TYPE_CHECKING:
    # torch takes seconds to load, and a command that only reads a finished build does not need it.
    import torch

PRECISION, PRECISIONS = "TINYSWALLOW_PRECISION", ("float32", "bfloat16")
MIN_BFLOAT16_SPEEDUP = 1.5
_PROBE_SECONDS = 1.0
_SMALL, _LARGE = 256, 1536  # sides of the square matrices that are multiplied
_RATE_SIDES = {"cuda": 8192, "cpu": 2048}  # large enough that the start of a product costs nothing in comparison


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a stage computes on; recorded in `machine.json`, every manifest and the report."""

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
        """The device; UserError when this build folder was begun on a machine with another one."""
        import torch

        available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        if self.device in available and not available[self.device]():
            wanted = f"the device {self.device} ({self.gpu}) that this build folder's machine.json names"
            next_step = "delete machine.json to measure this machine, or build in another folder"
            raise UserError("contradiction", wanted=wanted, got="a machine without it", next_step=next_step)
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> "torch.dtype":
        """`compute_dtype` as torch's own."""
        import torch

        return torch.bfloat16 if self.compute_dtype == "bfloat16" else torch.float32

    @property
    def compiles_shapes(self) -> bool:
        """Whether oneDNN computes the products: it compiles a kernel for every new shape of them, and keeps it."""
        return self.device == "cpu" and self.compute_dtype == "bfloat16"

    def autocast(self) -> "torch.autocast":
        """The context of a forward pass: torch's autocast to bfloat16, switched off for float32."""
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
    """The machine as recorded in `record` (a `machine.json`), or measured in about a second and written there.

    A record of another processor is measured again, because a build folder may have been moved, and so is one without
    a GPU where torch now sees one. `threads` are this process's, or the recorded ones if it is one of several: a
    launcher gives each of them one. A precision that the environment sets replaces the measured one, and is not
    recorded. UserError where the record cannot be read, or the environment names another precision.
    """
    forced, machine = os.environ.get(PRECISION), _recorded_or_measured(record)
    if forced not in (None, "", *PRECISIONS):
        raise unknown_name(PRECISION, forced, PRECISIONS)
    return replace(machine, compute_dtype=forced) if forced else machine


def _recorded_or_measured(record: Path) -> Machine:
    cpu = cpu_name()
    if record.exists():
        known = read_machine(record)
        torch = sys.modules.get("torch")  # not loaded for this alone
        if known.cpu == cpu and torch is None:
            return known
        if known.cpu == cpu and torch is not None and not (known.device == "cpu" and torch.cuda.is_available()):
            is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
            return replace(known, threads=torch.get_num_threads()) if is_alone else known
    machine = _measure(cpu)
    write_machine(record, machine)
    return machine


def write_machine(record: Path, machine: Machine) -> None:
    """Write a `machine.json`, and its folder where that is absent."""
    record.parent.mkdir(parents=True, exist_ok=True)
    replace_text(record, json.dumps(machine.to_json(), indent=2, ensure_ascii=False) + "\n")


def read_machine(record: Path) -> Machine:
    """The machine that a `machine.json` describes; UserError where it cannot be read."""
    try:
        return Machine.from_json(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        wanted, next_step = f"the machine's description in {record}", "delete the file and start again"
        raise UserError("wrong-format", wanted=wanted, got=str(error), next_step=next_step) from error


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


def on_grid(size: int) -> int:
    """The next of a few sizes for tokens: from one power of two to the next there are at most 16, multiples of 32.

    See `Machine.compiles_shapes`: filled up to them, tokens need few kernels, and 3 % more products on average.
    """
    step = max(32, 1 << max(0, size.bit_length() - 5))
    return -(-size // step) * step


def emulates_bfloat16() -> bool:
    """Whether this CPU is known to lack bfloat16 units (AMX, avx512_bf16); torch reports them on x86 only."""
    import torch

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return known.get("architecture") == "x86_64" and not (known.get("avx512_bf16") or known.get("amx_bf16"))


def bfloat16_speedup(device: str) -> float:
    """How many times faster than float32 a bfloat16 matrix product is on `device`; takes about a second."""
    import torch

    threads = torch.get_num_threads()
    # On one thread: on busy cores, several threads would measure how long they wait for one another.
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
    """Shortest seconds of one product per precision; both in turns, so that a busy moment affects both."""
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    matrices = {name: torch.ones(side, side, dtype=dtype, device=device) for name, dtype in dtypes.items()}
    shortest = dict.fromkeys(dtypes, float("inf"))
    deadline = None
    while deadline is None or time.perf_counter() < deadline:
        for name, matrix in matrices.items():
            start = synchronized_time(device)
            torch.mm(matrix, matrix)
            seconds_taken = synchronized_time(device) - start
            # The first round warms up: libraries choose their kernels there.
            if deadline is not None:
                shortest[name] = min(shortest[name], seconds_taken)
        deadline = deadline or time.perf_counter() + seconds
    return shortest


class MatmulProbe:
    """A few products of square matrices, `flops` operations at each call; on a GPU the call does not wait for them."""

    def __init__(
        self, dtype: "torch.dtype", device: "torch.device", *, side: int | None = None, times: int = 8
    ) -> None:
        """A `side` of None takes what suits the device."""
        import torch

        side = _RATE_SIDES[device.type] if side is None else side
        # Random numbers: on equal ones a GPU draws less power and runs faster than it ever does in training.
        generator = torch.Generator(device).manual_seed(0)
        self._a, self._b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
        self._out, self._times = torch.empty_like(self._a), times
        self.flops = 2 * side**3 * times

    def __call__(self) -> "torch.Tensor":
        import torch

        for _ in range(self._times):
            torch.mm(self._a, self._b, out=self._out)
        return self._out


def matmul_rate(dtype: "torch.dtype", device: "torch.device", *, side: int | None = None, rounds: int = 5) -> float:
    """FLOP/s of large matrix products on `device`, in the fastest of a few rounds: the yardstick of a step's time."""
    probe, fastest = MatmulProbe(dtype, device, side=side), float("inf")
    for _ in range(rounds):
        start = synchronized_time(device.type)
        probe()
        fastest = min(fastest, synchronized_time(device.type) - start)
    return probe.flops / fastest


def synchronized_time(device: str, *, every_gpu: bool = False) -> float:
    """Seconds of a clock, read when the present device, or every GPU of this machine, has finished its work."""
    import torch

    if device == "cuda":
        for index in range(torch.cuda.device_count()) if every_gpu else (torch.cuda.current_device(),):
            torch.cuda.synchronize(index)
    elif device == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def cpu_name() -> str:
    """The processor's name as the system reports it, else its architecture."""
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
