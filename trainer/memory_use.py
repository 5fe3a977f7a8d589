"""How much memory a rank takes, said now and then in its steps' events: what a plan is compared with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch

from zerofleet.trainer.residence import Residence

SHARE = 1000
"""A look takes at most one part in so many of a rank's time: the kernel walks the whole page table for it, 10 ms per GB and more."""


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
    """The most that only this process had of the host's memory. 0 where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError):
        return Residence.of("self").highest_own
    return 0
