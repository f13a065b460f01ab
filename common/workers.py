"""One function over many inputs in several processes, results in order, and few inputs waiting at a time.

It knows no stage and nothing of what the function does.
"""

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from common.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Inputs that wait for each worker: enough that none is idle, few enough for memory."""
# One thread a process: as many processes as cores would otherwise each start as many threads.
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

_function: Callable[[Any], Any]


def ordered_map(function: Callable[[T], R], inputs: Iterable[T], *, workers: int) -> Iterator[R]:
    """`function` of each input, in the order of the inputs.

    Args:
        function: sent to each worker once, so it may be large; it and all inputs and results can be pickled.
        inputs: read as they are needed.
        workers: processes; with 1 everything happens in this one.

    Raises:
        UserError: a worker was killed.
        Exception: whatever `function` raises, at its place in the order.
    """
    if workers <= 1:
        yield from map(function, inputs)
        return
    # A fresh interpreter a worker: a fork would copy this one with whatever threads it has.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_install, initargs=(function,))
    waiting: deque[Future[R]] = deque()
    try:
        for one in inputs:
            with _one_thread():  # processes are started here, as they are needed
                waiting.append(pool.submit(_call, one))
            if len(waiting) >= workers * (1 + _AHEAD):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            wanted="worker processes that run to the end",
            got="one that was killed, most likely for want of memory",
            next_step="start again: what was finished is kept; OMP_NUM_THREADS sets the number of workers",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _install(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """Processes that start meanwhile compute in one thread: numpy reads its number when it is loaded, which in a worker
    is before any code of ours."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _call(one: Any) -> Any:
    return _function(one)
