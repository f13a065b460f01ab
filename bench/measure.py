"""Time and memory of functions that run side by side: warm-up, turns, medians; peak above what was there before."""

import argparse
import gc
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from common.fused_linear_loss import default_chunk_tokens
from common.heap import trim_freed_memory
from common.metrics import peak_bytes, reset_peak

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def device_here() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_chunk_tokens(options: argparse.Namespace) -> None:
    """Puts what training takes in the place of a `--chunk-tokens` that was not given."""
    if options.chunk_tokens is None:
        options.chunk_tokens = default_chunk_tokens(device_here(), PRECISIONS[options.precision])


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(sides: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each side over `turns`."""
    return {name: statistics.median(values) for name, values in turns(sides, rounds=rounds, device=device).items()}


def turns(sides: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each side by round; in every round all sides run once, so that a busy moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            gc.collect()
            synchronize(device)
            start = time.perf_counter()
            side()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
            say(f"round {number + 1} of {rounds}: {name} {seconds[name][-1]:.3f} s")
    return seconds


def peak_above(function: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `function` needs beyond what is there when it starts; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    trim_freed_memory()  # it would hide the next need
    before = resident_bytes()
    reset_peak()
    function()
    return peak_bytes() - before


def resident_bytes() -> int:
    """Bytes of this process that lie in memory now; where the system does not tell, the most that ever lay there."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return peak_bytes()
    resident = re.search(r"VmRSS:\s+(\d+) kB", status.read_text(encoding="ascii"))
    assert resident
    return int(resident[1]) * 1024


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not sys.platform.startswith("linux"):
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    return int(available[1]) * 1024 if available else None


def say(text: str) -> None:
    """Progress, on stderr: stdout's last line is the result."""
    print(text, file=sys.stderr, flush=True)
