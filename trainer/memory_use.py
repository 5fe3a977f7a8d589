"""How much memory a rank takes, said now and then in its steps' events: what a plan is compared with."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

SHARE = 1000
"""A look takes at most one part in so many of a rank's time: the kernel walks the whole page table for it, 10 ms per GB and more."""
_ROLLUP = Path("/proc/self/smaps_rollup")


class MemoryUse:
    """One rank's."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_on_gpu, self._clock = device.type == "cuda", clock
        self._next_at = float("-inf")

    def take(self) -> dict[str, int]:
        """At the first step, and whenever it is time again: `memory_bytes`, the most of the host's memory that was this process's alone so far,
        and on a GPU `device_bytes`, the most that was allocated there. Else nothing."""
        began = self._clock()
        if began < self._next_at:
            return {}
        found = {"memory_bytes": highest_own_bytes()}
        if self._is_on_gpu:
            found["device_bytes"] = torch.cuda.max_memory_allocated()
        ended = self._clock()
        self._next_at = ended + SHARE * (ended - began)
        return {name: size for name, size in found.items() if size}


def highest_own_bytes() -> int:
    """What only this process has of the host's memory, snapshots in /dev/shm apart, and by how much it has had more resident before: what it
    shares, with the process that it was forked from above all, is shared from the fork on. 0 where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError):
        return own_bytes_of(_ROLLUP.read_text(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return 0


def own_bytes_of(rollup: str, highest_resident_bytes: int) -> int:
    """By the text of smaps_rollup (Linux, Documentation/filesystems/proc.rst)."""
    kib = {name: int(rest.split()[0]) for name, _, rest in (row.partition(":") for row in rollup.splitlines()[1:])}
    own = sum(size for name, size in kib.items() if name.startswith("Private_")) - kib.get("Pss_Shmem", 0)
    return max(0, own) * 1024 + max(0, highest_resident_bytes - kib["Rss"] * 1024)
