"""RECIPE=auto: the release's needs against independent counts, and the one line on machines of every kind."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import preflight
from recipes.preflight import GIB, Room, choose, release_needs

LARGE = Room(gpu_bytes=139 * GIB, ram_bytes=512 * GIB, disk_bytes=2_000 * GIB)


def _qwen2_parameters(*, layers: int, width: int, inner: int, kv_width: int, rows: int, tied: bool) -> int:
    """Weights of a Qwen2 model, matrix by matrix."""
    attention = 2 * width * width + width + 2 * (width * kv_width + kv_width)
    layer = attention + 3 * width * inner + 2 * width
    return layers * layer + width + rows * width * (1 if tied else 2)


def test_parameter_counts_equal_those_of_the_published_shapes() -> None:
    teacher = _qwen2_parameters(layers=64, width=5120, inner=27648, kv_width=8 * 128, rows=152064, tied=False)
    student = _qwen2_parameters(layers=28, width=1536, inner=8960, kv_width=2 * 128, rows=151936, tied=True)
    assert teacher == preflight.TEACHER_PARAMETERS
    assert student == preflight.STUDENT_PARAMETERS


def test_the_needs_hold_at_least_what_is_known_to_be_there() -> None:
    needs = release_needs()
    # The teacher in bf16 and the student in training, nothing else: a floor in GB from the sheets.
    assert needs.gpu_bytes > 65e9 + 16 * 1.54e9
    assert needs.ram_bytes > 16.9e9
    # The download of the teacher and a checkpoint of the student.
    assert needs.disk_bytes > 65e9 + 12 * 1.54e9


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (LARGE, "enough here, but mini is the one recipe there is yet"),
        (dataclasses.replace(LARGE, gpu_bytes=0), "too little GPU memory here, and mini"),
        (dataclasses.replace(LARGE, ram_bytes=8 * GIB), "too little RAM here, and mini"),
        (dataclasses.replace(LARGE, disk_bytes=8 * GIB), "too little disk here, and mini"),
        (Room(gpu_bytes=0, ram_bytes=0, disk_bytes=0), "too little GPU memory and RAM and disk here, and mini"),
    ],
)
def test_the_line_names_all_that_is_short_at_once(here: Room, says: str) -> None:
    recipe, line = choose(here)
    assert recipe == "mini"
    assert line.startswith("RECIPE=auto builds mini: the release needs ")
    assert line.count("\n") == 0
    assert says in line


def test_the_line_puts_need_beside_what_is_here() -> None:
    _, line = choose(dataclasses.replace(LARGE, gpu_bytes=79 * GIB))
    needed_gib = release_needs().gpu_bytes / 2**30
    assert f"{needed_gib:.0f} GiB of GPU memory (here 79)" in line


def _fake_driver(folder: Path, answer: str, status: int) -> str:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\nprintf '{answer}'\nexit {status}\n")
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("answer", "status", "mebibytes"),
    [("81559\\n", 0, 81559), ("81559\\n81559\\n", 0, 163118), ("[N/A]\\n", 0, 0), ("no driver\\n", 9, 0), ("", 0, 0)],
)
def test_gpu_memory_is_the_sum_and_a_broken_driver_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, mebibytes: int
) -> None:
    monkeypatch.setenv("PATH", _fake_driver(tmp_path, answer, status))
    assert preflight.gpu_bytes() == mebibytes * 2**20


def test_no_driver_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preflight.gpu_bytes() == 0


def test_room_here_agrees_with_the_system(tmp_path: Path) -> None:
    room = preflight.room_here(tmp_path)
    block = os.statvfs(tmp_path)
    assert room.disk_bytes == pytest.approx(block.f_bavail * block.f_frsize, rel=0.05)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        total_kib = int(meminfo.read_text().split("MemTotal:")[1].split()[0])
        assert room.ram_bytes == pytest.approx(total_kib * 1024, rel=0.05)


def test_it_answers_without_loading_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from recipes.preflight import choose, room_here\n"
        "print(*choose(room_here(Path.cwd()))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mini RECIPE=auto builds mini: the release needs ")
    assert done.stdout.count("\n") == 1
