"""What glibc's allocator does with freed memory on CPU ranks. A step frees and takes the same large tensors over and over;
by default they go back to the kernel each time, and come back as page faults: 50,000 in a step of 1.6 s, 5 % of its time
(benchmarks/results/2026-11-22-overhead.md). Kept, they are quick to have again, but residence stays at its peak, and beyond it: the next
tensor often does not fit into the hole that the last one left."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""glibc's malloc.h; mallopt(3)."""
_NEVER = 2**31 - 1
GIVEN_BACK_BYTES = 64 * 1024
"""From this size on a block is a mapping of its own, and leaves with what it held. Setting it also ends glibc's habit of raising it up to
32 MiB as such blocks are freed."""


def keep_freed_memory() -> bool:
    """From here on the process keeps what it frees for its own next allocation: none by mmap, no trimming of the heap. Its
    memory stays at its peak. False where the C library has no mallopt."""
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER})


def give_freed_memory_back() -> bool:
    """From here on large blocks go back to the kernel as they are freed: residence follows what is in use. False where the C library has
    no mallopt."""
    return _set({_M_MMAP_MAX: _NEVER, _M_MMAP_THRESHOLD: GIVEN_BACK_BYTES, _M_TRIM_THRESHOLD: GIVEN_BACK_BYTES})


def _set(options: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in options.items())
