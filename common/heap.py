"""What becomes of memory that this process has freed: kept for its next need, or given back to the system.

A training step on a CPU takes and frees the same tensors of a few megabytes again and again. glibc gives them back each
time, and the system then hands every page out anew and cleared: about a tenth of mini's training time went there. Other
C libraries are left as they are.
"""

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h (mallopt(3))."""
_NEVER = -1
_LARGEST_KEPT_BYTES = 32 * 2**20
"""The most that glibc takes as M_MMAP_THRESHOLD; larger blocks are given back when they are freed."""


def keep_freed() -> None:
    """From now on freed blocks of up to 32 MiB stay with this process until `give_back_freed`."""
    libc = _glibc()
    if libc:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back_freed() -> None:
    """Gives back to the system what is free now."""
    libc = _glibc()
    if libc:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
