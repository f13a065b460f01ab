"""Time and memory of functions that run in turns: medians, and the peak of memory above that before."""

import argparse
import gc
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from common.cli import require_at_least_one
from common.device import synchronized_time
from common.fused_linear_loss import default_chunk_tokens
from common.heap import trim_freed_memory
from common.metrics import peak_bytes, reset_peak

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def device_here() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def add_common(verb: argparse.ArgumentParser) -> None:
    """Register the options of the benchmarks of training."""
    add = verb.add_argument
    add("--precision", choices=sorted(PRECISIONS), default="fp32", help="of the products, on all sides")
    add("--vocabulary", type=int, default=151_665, metavar="N", help="ids that both heads share")
    add("--chunk-tokens", type=int, metavar="N", help="of the fused loss (default: as in training)")
    add("--rounds", type=int, default=3, metavar="N", help="timed runs of each side")


def resolve(options: argparse.Namespace, *counts: str) -> None:
    """Replace an omitted `--chunk-tokens` by what training takes, and refuse `counts` below 1."""
    if options.chunk_tokens is None:
        options.chunk_tokens = default_chunk_tokens(device_here(), PRECISIONS[options.precision])
    require_at_least_one(**{name: getattr(options, name) for name in (*counts, "vocabulary", "chunk_tokens", "rounds")})


def medians(sides: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each side over `turns`."""
    return {name: statistics.median(values) for name, values in turns(sides, rounds=rounds, device=device).items()}


def turns(sides: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each side by round; all sides run once in every round, so that a busy moment affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            gc.collect()
            start = synchronized_time(device.type)
            side()
            seconds[name].append(synchronized_time(device.type) - start)
            say(f"round {number + 1} of {rounds}: {name} {seconds[name][-1]:.3f} s")
    return seconds


def peak_above(function: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `function` needs in addition to those in use when it starts; None where the system does not say."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    trim_freed_memory()  # kept memory would hide what the function allocates
    before = resident_bytes()
    reset_peak()
    function()
    return peak_bytes() - before


def resident_bytes() -> int:
    """Bytes of this process in memory now; where the system does not say, their peak."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return peak_bytes()
    resident = re.search(r"VmRSS:\s+(\d+) kB", status.read_text(encoding="ascii"))
    assert resident
    return int(resident[1]) * 1024


def free_bytes(device: torch.device) -> int | None:
    """Available memory; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not sys.platform.startswith("linux"):
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    return int(available[1]) * 1024 if available else None


def say(text: str) -> None:
    """Print progress on stderr: stdout's last line is the result."""
    print(text, file=sys.stderr, flush=True)
