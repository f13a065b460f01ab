"""What a long stage records while it runs: a metrics file, a progress bar, and its peak memory.

`MetricsLog` writes one JSON line per record into `metrics.jsonl` of a stage's folder, `progress` draws a bar on a
terminal, `peak_bytes` reads the operating system's high-water mark. Plots and averages are made later from the file
(`eval.report`).
"""

import contextlib
import json
import os
import re
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, overload

from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"

Item = TypeVar("Item")


class MetricsLog:
    """Appends records to `folder/metrics.jsonl`, one JSON object per line.

    `resume_after_step` is the step of the checkpoint that the stage resumes from. Lines of later steps, which the
    resumed run writes again, are dropped, and so is a line cut by a kill. 0 starts an empty file.
    """

    def __init__(self, folder: Path, *, resume_after_step: int = 0) -> None:
        self.path = folder / METRICS_FILE
        kept = read_metrics(folder, last_step=resume_after_step) if resume_after_step > 0 else []
        rewritten = self.path.with_name(METRICS_FILE + ".new")
        rewritten.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        os.replace(rewritten, self.path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record. It has an integer `step`; a number that is not finite raises ValueError."""
        assert isinstance(record.get("step"), int), "a metrics record needs an integer step"
        # Opened for each record: a failed stage leaves no open handle, and a kill loses at most one line.
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))


def read_metrics(folder: Path, *, last_step: int | None = None) -> list[dict[str, Any]]:
    """The records of `folder/metrics.jsonl` in order, up to `last_step` where one is given; [] without a file.

    A line cut by a kill can only be the last one; it is left out.
    """
    path, records = folder / METRICS_FILE, list[dict[str, Any]]()
    if not path.exists():
        return records
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            break
        if last_step is None or record["step"] <= last_step:
            records.append(record)
    return records


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


@overload
def progress(iterable_or_total: int, *, label: str, unit: str, total: int | None = None) -> "tqdm[int]": ...
@overload
def progress(iterable_or_total: Iterable[Item], *, label: str, unit: str, total: int | None = None) -> "tqdm[Item]": ...
def progress(iterable_or_total: int | Iterable[Any], *, label: str, unit: str, total: int | None = None) -> "tqdm[Any]":
    """A bar with `label`, rate and time left on stderr; nothing where stderr is no terminal.

    It loops over an iterable (`total` units where that has no length), or counts to a number of units that the caller
    advances with `.update(n)`. `unit` is what is counted, in the plural ("tokens").
    """
    iterable, count = (None, iterable_or_total) if isinstance(iterable_or_total, int) else (iterable_or_total, total)
    return tqdm(
        iterable,
        total=count,
        desc=label,
        unit=" " + unit,
        unit_scale=True,
        dynamic_ncols=True,
        leave=False,  # the store prints one line per stage; a bar that stays would be a second one
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
    )


def reset_peak() -> None:
    """Reset `peak_bytes` on Linux; elsewhere the high-water mark only rises."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Peak resident set of this process since `reset_peak` or its start, without its children, in bytes."""
    with contextlib.suppress(OSError):
        high_water_mark = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        if high_water_mark:
            return int(high_water_mark[1]) * 1024
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss if sys.platform == "darwin" else max_rss * 1024
