"""The machine: measured once, kept in its file, and float32 wherever bfloat16 does not pay."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors_tiny import refuses

from common import device
from common.device import Machine, bfloat16_speedup, emulates_bfloat16, probe

CPU = Machine(
    device="cpu", compute_dtype="float32", cpu="any", gpu=None, memory_bytes=2**30, os="any", threads=2
)  # fmt: skip


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device.PRECISION, raising=False)


def test_json_and_back() -> None:
    assert Machine.from_json(json.loads(json.dumps(CPU.to_json()))) == CPU


def test_measured_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speedups = iter([3.0])
    monkeypatch.setattr(device, "bfloat16_speedup", lambda name: next(speedups))
    first = probe(tmp_path / "build" / "machine.json")
    assert first.compute_dtype == "bfloat16"
    assert probe(tmp_path / "build" / "machine.json") == first  # a second measurement would end the iterator
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["machine.json"]


@pytest.mark.parametrize(("speedup", "dtype"), [(0.002, "float32"), (1.49, "float32"), (1.5, "bfloat16")])
def test_bfloat16_from_one_and_a_half_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, dtype: str
) -> None:
    monkeypatch.setattr(device, "bfloat16_speedup", lambda name: speedup)
    assert probe(tmp_path / "machine.json").compute_dtype == dtype


def test_another_processor_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "machine.json"
    record.write_text(json.dumps(replace(CPU, cpu="one that moved away").to_json()))
    monkeypatch.setattr(device, "bfloat16_speedup", lambda name: 1.0)
    assert probe(record).cpu == device.cpu_name() == json.loads(record.read_text())["cpu"]


def test_a_gpu_that_was_not_there_before_is_measured_and_threads_are_this_process_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "machine.json"
    record.write_text(json.dumps(replace(CPU, cpu=device.cpu_name(), threads=77).to_json()))
    assert probe(record) == replace(CPU, cpu=device.cpu_name(), threads=torch.get_num_threads())
    monkeypatch.setenv("WORLD_SIZE", "2")  # each process of a launcher gets one thread
    assert probe(record).threads == 77
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(device, "bfloat16_speedup", lambda name: 2.0)
    found = probe(record)
    assert (found.device, found.gpu, found.compute_dtype) == ("cuda", "a GPU", "bfloat16")
    assert json.loads(record.read_text())["device"] == "cuda"
    assert probe(record) == found


def test_the_environment_chooses_the_precision_and_leaves_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "bfloat16_speedup", lambda name: 1.0)
    record = tmp_path / "machine.json"
    monkeypatch.setenv(device.PRECISION, "bfloat16")
    assert probe(record).compute_dtype == "bfloat16"
    assert json.loads(record.read_text())["compute_dtype"] == "float32"
    monkeypatch.setenv(device.PRECISION, "")
    assert probe(record).compute_dtype == "float32"
    monkeypatch.setenv(device.PRECISION, "bf16")
    with refuses("unknown-name", wanted=device.PRECISION, got="bf16"):
        probe(record)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"device": "cpu"}', '{"host": "x"}'])
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "machine.json").write_text(text)
    with refuses("wrong-format", wanted="machine.json", next_step="delete"):
        probe(tmp_path / "machine.json")


def test_no_host_user_or_path_is_kept() -> None:
    text = json.dumps(device._measure(device.cpu_name()).to_json())
    node = os.uname().nodename
    assert str(Path.cwd()) not in text and str(Path.home()) not in text and (len(node) < 4 or node not in text)


def test_the_probe_times_what_it_says_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a matrix product that takes a known time: 1 ms in float32, 0.25 ms in bfloat16."""
    clock = [0.0]

    def product(left: torch.Tensor, right: torch.Tensor) -> None:
        clock[0] += 1e-3 if left.dtype == torch.float32 else 0.25e-3

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])
    threads = torch.get_num_threads()
    assert bfloat16_speedup("cpu") == pytest.approx(4.0)
    assert torch.get_num_threads() == threads
    assert 1.0 < clock[0] < 1.2


@pytest.mark.parametrize(
    ("capabilities", "emulated"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_a_processor_without_bfloat16_units_is_known(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], emulated: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert emulates_bfloat16() is emulated


def test_emulated_bfloat16_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []

    def products(name: str, *, side: int, seconds: float) -> dict[str, float]:
        sides.append(side)
        return {"float32": 1e-3, "bfloat16": 0.3}

    monkeypatch.setattr(device, "_shortest_products", products)
    assert bfloat16_speedup("cpu") == pytest.approx(1 / 300)
    assert sides == [device._SMALL]


def test_a_real_probe_takes_seconds_and_not_minutes() -> None:
    code = (
        "import time, torch; from common.device import bfloat16_speedup\n"
        "start = time.time(); bfloat16_speedup('cpu'); print(time.time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) < 10


@pytest.mark.parametrize(("dtype", "computed"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_autocast_lowers_what_is_computed_and_not_the_weights(dtype: str, computed: torch.dtype) -> None:
    machine = replace(CPU, compute_dtype=dtype)
    layer = torch.nn.Linear(4, 4)
    with machine.autocast():
        assert layer(torch.ones(1, 4)).dtype == computed
    assert layer.weight.dtype == torch.float32
    assert machine.torch_dtype == computed


def test_a_device_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: Any = lambda: False  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", gone)
    with refuses("contradiction", wanted="cuda (a card)", next_step="machine.json"):
        _ = replace(CPU, device="cuda", gpu="a card").torch_device
    assert CPU.torch_device == torch.device("cpu")


def test_reading_a_record_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(json.dumps(replace(CPU, cpu=device.cpu_name()).to_json()))
    code = (
        "import sys; from pathlib import Path; from common.store import Store\n"
        "Store(Path(sys.argv[1])).machine; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[1])
