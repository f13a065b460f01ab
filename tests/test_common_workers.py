"""Ordered work in several processes, against a plain map."""

import importlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from errors_tiny import refuses

from common.errors import InputError
from common.workers import ordered_map


def slow_square(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    return number**2


def fails_at_five(number: int) -> int:
    if number == 5:
        raise ValueError("five")
    return number


def dies(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuses_odd(number: int) -> int:
    raise InputError("out-of-range", wanted="even numbers", got=str(number), next_step="leave it out")


def threads(_: int) -> tuple[str | None, int]:
    return os.environ.get("RAYON_NUM_THREADS"), os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(ordered_map(slow_square, range(12), workers=workers)) == [number**2 for number in range(12)]


def test_an_error_comes_at_its_place() -> None:
    found: list[int] = []
    with pytest.raises(ValueError, match="five"):
        for number in ordered_map(fails_at_five, range(10), workers=2):
            found.append(number)
    assert found == [0, 1, 2, 3, 4]


def test_inputs_are_read_as_they_are_needed() -> None:
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = ordered_map(slow_square, inputs(), workers=2)
    assert next(results) == 0 and len(taken) < 20
    results.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_killed_worker_is_named() -> None:
    with refuses("no-memory"):
        list(ordered_map(dies, range(3), workers=2))


def test_a_users_mistake_is_told_as_the_worker_told_it() -> None:
    with refuses("out-of-range", wanted="even numbers", got="1", next_step="leave it out") as found:
        list(ordered_map(refuses_odd, [1, 3], workers=2))
    assert isinstance(found[0], InputError)


def test_modules_are_loaded_with_one_thread_and_our_own_process_keeps_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    (tmp_path / "loaded_like_numpy.py").write_text(
        f"import os\nfound = [os.environ.get(name) for name in {names}]\ndef at_load(_): return found\n"
    )
    monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]
    monkeypatch.setenv(names[0], "7")
    for name in names[1:]:
        monkeypatch.delenv(name, raising=False)
    function = importlib.import_module("loaded_like_numpy").at_load
    before = ["7", None, None, None]
    results = ordered_map(function, range(8), workers=2)
    assert next(results) == ["1"] * 4 and [os.environ.get(name) for name in names] == before
    assert list(results) == [["1"] * 4] * 7 and function(0) == before


def test_workers_use_one_thread_and_are_other_processes() -> None:
    found = list(ordered_map(threads, range(4), workers=2))
    assert {number for number, _ in found} == {"1"} and os.getpid() not in {process for _, process in found}


def test_no_process_is_left(tmp_path: Path) -> None:
    processes = {process for _, process in ordered_map(threads, range(4), workers=2)}
    assert all(not Path(f"/proc/{process}").exists() for process in processes) or not Path("/proc").exists()
