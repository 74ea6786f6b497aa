"""The C heap of a process that handles large messages."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_KEPT = 32 * 2**20  # glibc allows no larger mmap threshold


def keep() -> bool:
    """Keep freed memory for the next message: up to 32 MiB at the heap's end. False where the C library has no mallopt.

    glibc hands blocks of 128 KiB and more back to the kernel as they are freed, and takes them again page fault by page
    fault. A body of 256 KB passes through several such blocks: without this it costs about five times the CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    values = {_TRIM_THRESHOLD: _KEPT, _TOP_PAD: 4 * 2**20, _MMAP_THRESHOLD: _KEPT}
    return all(mallopt(name, value) == 1 for name, value in values.items())
