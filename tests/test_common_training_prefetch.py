"""Data made ahead of its step: order, overlap, how far ahead, errors at their own step, no thread left behind."""

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.training import prefetched


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 20
    while not holds():
        assert time.perf_counter() < deadline, "what the thread should have done by now is not done"
        time.sleep(0.001)


@given(steps=st.lists(st.integers(-5, 5), max_size=12), ahead=st.integers(1, 4))
def test_every_step_comes_once_and_in_order(steps: list[int], ahead: int) -> None:
    assert list(prefetched(lambda step: step * step, steps, ahead)) == [(step, step * step) for step in steps]
    assert _threads() == []


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_next_steps_are_made_while_one_is_used_and_not_more_of_them(ahead: int) -> None:
    begun: list[int] = []
    names: set[str] = set()

    def make(step: int) -> int:
        begun.append(step)
        names.add(threading.current_thread().name)
        return step

    for step, _ in prefetched(make, range(10), ahead):
        wanted = list(range(min(10, step + 1 + ahead)))
        _wait_until(lambda wanted=wanted: len(begun) >= len(wanted))  # without the loop's asking for them
        assert begun == wanted
    assert len(names) == 1 and threading.current_thread().name not in names


def _fails_at_three(step: int) -> int:
    if step == 3:
        raise ValueError("row 3 is broken")
    return step


def test_an_error_comes_at_its_own_step_and_not_before() -> None:
    seen: list[int] = []
    with pytest.raises(ValueError, match="row 3 is broken"):
        for step, _ in prefetched(_fails_at_three, range(10), ahead=4):
            seen.append(step)
    assert seen == [0, 1, 2] and _threads() == []


def test_an_error_that_is_never_asked_for_stays_unsaid() -> None:
    for step, _ in prefetched(_fails_at_three, range(10), ahead=4):
        if step == 2:
            break
    assert _threads() == []


def test_a_loop_that_raises_leaves_no_thread() -> None:
    with pytest.raises(KeyError) as raised:
        for step, _ in prefetched(lambda step: step, range(10)):
            assert len(_threads()) == 1
            raise KeyError(step)
    assert _threads() == [], f"the traceback of {raised.value!r} is still there, and the thread is not"


def test_steps_that_no_one_will_use_are_not_begun() -> None:
    release, begun = threading.Event(), list[int]()

    def make(step: int) -> int:
        begun.append(step)
        assert step == 0 or release.wait(20)
        return step

    batches = prefetched(make, range(10), ahead=4)
    assert next(batches) == (0, 0)
    _wait_until(lambda: begun == [0, 1])
    threading.Timer(0.05, release.set).start()
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert begun == [0, 1] and _threads() == []


def test_nothing_starts_before_the_first_step_is_asked_for() -> None:
    batches = prefetched(lambda step: step, range(3))
    assert _threads() == []
    assert next(iter(batches)) == (0, 0)
