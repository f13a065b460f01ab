"""One process at a time: a lock that the system releases by itself when its holder dies, even by SIGKILL.

It knows nothing of what the lock protects.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Generator
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: Path, *, on_wait: Callable[[str], None]) -> Generator[None]:
    """Hold the lock file `path` for the duration of the block, and remove it afterwards.

    Args:
        path: the lock file; its folder exists.
        on_wait: called once, with the holder's process id, before waiting for another process.
    """
    handle = _acquire(path, on_wait)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, on_wait: Callable[[str], None]) -> int:
    told = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                on_wait(os.pread(handle, 20, 0).decode())
                told = True
            fcntl.flock(handle, fcntl.LOCK_EX)
        # The holder that we waited for has removed its file: a lock on a file without a name would protect nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)
