"""Freed memory of this process: kept for its next allocation, or returned to the system (glibc only).

A training step on a CPU allocates and frees the same tensors of a few megabytes again and again. glibc returns them to
the system each time, and the system clears every page again: of 40 steps of mini's TAID that took between nothing and a
quarter of the time, in three pairs of runs.
"""

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h (mallopt(3))."""
_NEVER = -1
_LARGEST_KEPT_BYTES = 32 * 2**20
"""The largest M_MMAP_THRESHOLD that glibc accepts on a 64-bit system."""


def retain_freed_memory() -> None:
    """Keep freed blocks of less than about 32 MiB in this process, until `trim_freed_memory`.

    A larger block is mapped by itself and returned when it is freed, unless the kept memory has room for it.
    """
    libc = _glibc()
    if libc and libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES) == 1:
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def trim_freed_memory() -> None:
    """Return free pages to the system."""
    libc = _glibc()
    if libc:
        libc.malloc_trim(ctypes.c_size_t(0))


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
