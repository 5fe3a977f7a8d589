"""What glibc's allocator does with freed memory on CPU ranks. A step frees and takes the same large tensors over and over;
by default they go back to the kernel each time, and come back as page faults: 50,000 in a step of 1.6 s, 5 % of its time
(benchmarks/results/2026-11-22-overhead.md)."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""glibc's malloc.h; mallopt(3)."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """From here on the process keeps what it frees for its own next allocation: none by mmap, no trimming of the heap. Its
    memory stays at its peak. False where the C library has no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
