"""The next steps' data made ready in one background thread while the present step computes.

Reading from mapped files and laying out tensors needs no order among the steps, so it may run ahead; what is made, and
its order, are the same as without. It knows neither rows nor models: whatever `make` returns is handed on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def prefetched(make: Callable[[int], T], steps: Iterable[int], ahead: int = 2) -> Iterator[tuple[int, T]]:
    """`(step, make(step))` for every step, in order, up to `ahead` of them made before they are asked for.

    An exception of `make` is raised when its step is asked for, after all the steps before it. The thread starts with
    the first step and ends with the loop, however that ends: where the loop is left early, when the iterator is closed
    or dropped. Keep no name for it, so that leaving the loop drops it.

    Args:
        make: called in the background thread, one step at a time, in the order of the steps.
        steps: what to loop over; read in the caller's thread, at most `ahead` steps early.
        ahead: how many steps may be ready and waiting, at least 1.
    """
    assert ahead >= 1, "with nothing made ahead there is nothing to overlap"
    waiting = iter(steps)
    pending: deque[tuple[int, Future[T]]] = deque()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        pending.extend((step, thread.submit(make, step)) for step in islice(waiting, ahead))
        while pending:
            step, made = pending.popleft()
            ready = made.result()
            pending.extend((later, thread.submit(make, later)) for later in islice(waiting, 1))
            yield step, ready
    finally:
        thread.shutdown(cancel_futures=True)
