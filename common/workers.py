"""Work on many inputs with little memory: batches of them, and one function over all in several processes."""

import contextlib
import math
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
# Otherwise each of as many processes as cores starts as many threads as cores.
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

_function: Callable[[Any], Any]


def batches(
    items: Iterable[T], size: Callable[[T], int], *, max_size: int, max_items: float = math.inf
) -> Iterator[tuple[list[T], int]]:
    """Yield (consecutive items, sum of their sizes); a batch ends when it reaches a limit."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= max_size or len(batch) >= max_items:
            yield batch, total
            batch, total = [], 0
    if batch:
        yield batch, total


def ordered_map(function: Callable[[T], R], inputs: Iterable[T], *, workers: int) -> Iterator[R]:
    """Yield `function` of each input, in the order of the inputs.

    Args:
        function: sent to each worker once, so it can be large. It and all inputs and results can be pickled.
        inputs: read when needed.
        workers: processes; 1 runs in this process.

    Raises:
        UserError: a worker was killed.
        Exception: what `function` raises, at its place in the order.
    """
    if workers <= 1:
        yield from map(function, inputs)
        return
    # A fresh interpreter a worker: a fork would copy this one with its threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_install, initargs=(function,))
    waiting: deque[Future[R]] = deque()
    try:
        for one in inputs:
            with _one_thread():  # `submit` starts the processes, when they are needed
                waiting.append(pool.submit(_call, one))
            if len(waiting) >= workers * (1 + _AHEAD):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        wanted, got = "worker processes that run to the end", "one that was killed, most likely because memory was full"
        next_step = "start again: finished work is kept; OMP_NUM_THREADS sets the number of workers"
        raise UserError("no-memory", wanted=wanted, got=got, next_step=next_step) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _install(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """Processes that start inside compute in one thread: numpy reads the number when it is loaded, which a worker does
    before any code of ours runs."""
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
