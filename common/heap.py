"""What becomes of memory that this process has freed: kept for its next need, or given back to the system.

A training step on a CPU takes and frees the same tensors of a few megabytes again and again. glibc gives them back each
time, and the system then hands every page out anew and cleared: of 40 steps of mini's TAID that took between nothing
and a quarter of the time, in three pairs of runs. Other C libraries are left as they are.
"""

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h (mallopt(3))."""
_NEVER = -1
_LARGEST_KEPT_BYTES = 32 * 2**20
"""The most that glibc takes as M_MMAP_THRESHOLD on a 64-bit system."""


def retain_freed_memory() -> None:
    """From now on freed blocks of less than about 32 MiB stay with this process until `trim_freed_memory`.

    A larger block is mapped by itself and goes back when it is freed, unless what is kept has room for it.
    """
    libc = _glibc()
    if libc and libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES) == 1:
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def trim_freed_memory() -> None:
    """Gives whole free pages back to the system."""
    libc = _glibc()
    if libc:
        libc.malloc_trim(ctypes.c_size_t(0))


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
