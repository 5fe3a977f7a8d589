"""What a step costs besides its work: waiting for data, standing still for a save, compiling, paging; and the memory that it takes.

Each costs a few clock readings per step, no collective. What is 0 is left out of a step's event, data and save apart, and memory but for
now and then.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from zerofleet.trainer.memory_use import MemoryUse

_PRESSURE = Path("/proc/pressure/memory")
"""`some avg10=.. avg60=.. avg300=.. total=<microseconds>`: the time in which somebody on this host waited for memory to be paged in or
reclaimed (Linux, Documentation/accounting/psi.rst)."""
_COMPILER = "torch._dynamo.utils"

T = TypeVar("T")
Clock = Callable[[], float]


class Waits:
    """One rank's. `clocks` count seconds upwards and are named as they are in the event."""

    def __init__(
        self, take_stall_s: Callable[[], float], clocks: dict[str, Clock], memory: MemoryUse | None = None
    ) -> None:
        self._take_stall_s, self._clocks, self._memory = take_stall_s, clocks, memory
        self._read = {name: clock() for name, clock in clocks.items()}
        self._data_s = 0.0

    @staticmethod
    def on(device: torch.device, local_rank: int, take_stall_s: Callable[[], float]) -> Waits:
        """Of a rank that trains there."""
        return Waits(take_stall_s, host_clocks(local_rank), MemoryUse(device))

    def of(self, batches: Iterator[T]) -> Iterator[T]:
        """The same, with the waiting for each counted."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._data_s += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def take(self) -> dict[str, float]:
        """`data_s` and `stall_s` of the step that has ended (the stall since the step before it), of the clocks those that moved, and the
        memory where it was looked at. The next step begins."""
        found = {"data_s": round(self._data_s, 6), "stall_s": round(self._take_stall_s(), 6)}
        self._data_s = 0.0
        for name, clock in self._clocks.items():
            before, self._read[name] = self._read[name], clock()
            if self._read[name] > before:
                found[name] = round(self._read[name] - before, 6)
        return found | (self._memory.take() if self._memory is not None else {})


def host_clocks(local_rank: int) -> dict[str, Clock]:
    """`compile_s` by torch's own account; `paging_s` of the whole host, said by its first rank where the kernel counts it."""
    clocks: dict[str, Clock] = {"compile_s": compile_clock}
    if local_rank == 0 and (paging := paging_clock()) is not None:
        clocks["paging_s"] = paging
    return clocks


def compile_clock() -> float:
    """Seconds that torch.compile has taken in this process; 0 while nothing has been compiled."""
    module = sys.modules.get(_COMPILER)
    return float(module.cumulative_time_spent_ns["entire_frame_compile"]) / 1e9 if module is not None else 0.0


def paging_clock(path: Path = _PRESSURE) -> Clock | None:
    """None where the kernel does not count it. Keeps a file open."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        os.pread(descriptor, 1, 0)
    except OSError:
        return None

    def waited_s() -> float:
        found = re.search(rb"total=(\d+)", os.pread(descriptor, 200, 0))
        return int(found[1]) / 1e6 if found else 0.0

    return waited_s
