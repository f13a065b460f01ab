"""The lock: never two holders at once, however the file comes and goes. Threads stand in for processes: a lock belongs
to an opened file, and each holder opens its own."""

import os
import threading
import time
from pathlib import Path

import pytest

from common.store import exclusive


def test_never_two_holders_while_the_file_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    inside: list[int] = []
    overlaps: list[list[int]] = []
    times = 40

    def work(number: int) -> None:
        for _ in range(times):
            with exclusive(path, on_wait=lambda holder: None):
                inside.append(number)
                if len(inside) > 1:
                    overlaps.append(list(inside))
                time.sleep(0.0005)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert not path.exists()


def test_who_waits_is_told_once_whom_for(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    told: list[str] = []
    entered = threading.Event()

    def wait() -> None:
        with exclusive(path, on_wait=told.append):
            entered.set()

    with exclusive(path, on_wait=told.append):
        thread = threading.Thread(target=wait)
        thread.start()
        while not told:
            time.sleep(0.001)
        assert not entered.is_set()
    thread.join()
    assert told == [str(os.getpid())]


def test_a_failure_inside_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with pytest.raises(RuntimeError), exclusive(path, on_wait=print):
        raise RuntimeError
    assert not path.exists()


def test_a_file_that_a_killed_holder_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text("99999999")
    with exclusive(tmp_path / "a.lock", on_wait=lambda holder: pytest.fail("nobody holds it")):
        pass
    assert not (tmp_path / "a.lock").exists()
