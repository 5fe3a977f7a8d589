"""How long a rank works by itself in a step: what tells a slow rank from those that wait for it.

Measured is the forward half: reading the data and the forward passes. The backward's hooks and the optimizer wait for other ranks,
so that all take as long there as the slowest; forward does not, up to ZeRO stage 2. Its measure depends on what can be had:

- stages 0 to 2, CPU: wall time. Sees whatever slows the rank: its processor, its neighbours, its data, a pause.
- stages 0 to 2, GPU: time between two events in the device's stream, gaps in which it waits for the host included.
- stage 3, CPU: forward gathers weights from other ranks; what counts is the time for which the main thread was not asleep (it
  ran, or the kernel had others run on its core). Does not see a rank that sleeps: slow disks, a paging machine.
- stage 3, GPU: the device waits for other ranks within forward, and nothing tells that from work: not measured.

A rank that is slow in backward or in the optimizer alone is not seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

_SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""`ran_ns waited_ns slices`: waited is the time in the run queue (Linux, Documentation/scheduler/sched-stats)."""


class OwnTime(Protocol):
    """One step's seconds, in sections from `resume` to `pause`; a section that is not closed does not count."""

    def resume(self) -> None: ...
    def pause(self) -> None: ...
    def take(self) -> dict[str, float]:
        """`own_s` of the step that has ended, or nothing where it cannot be measured. The next step begins."""


class HostTime:
    """By a clock of the host."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s, self._since_s, self._seconds = clock_s, 0.0, 0.0

    def resume(self) -> None:
        self._since_s = self._clock_s()

    def pause(self) -> None:
        self._seconds += self._clock_s() - self._since_s

    def take(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, 0.0
        return {"own_s": round(seconds, 6)}


class DeviceTime:
    """By events in the current CUDA stream. `take` needs the device to have finished the step."""

    def __init__(self) -> None:
        self._since: torch.cuda.Event | None = None
        self._sections: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def resume(self) -> None:
        self._since = _record()

    def pause(self) -> None:
        assert self._since is not None
        self._sections.append((self._since, _record()))

    def take(self) -> dict[str, float]:
        sections, self._sections = self._sections, []
        return {"own_s": round(sum(begin.elapsed_time(end) for begin, end in sections) / 1e3, 6)}


class NoTime:
    """Where it cannot be measured."""

    def resume(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def take(self) -> dict[str, float]:
        return {}


def own_time(device: torch.device, zero_stage: int) -> OwnTime:
    """The measure for a rank. To be called by the thread that trains."""
    if device.type == "cuda":
        return DeviceTime() if zero_stage < 3 else NoTime()
    if zero_stage < 3:
        return HostTime(time.perf_counter)
    return HostTime(awake_clock()) if _SCHEDSTAT.exists() else NoTime()


def awake_clock() -> Callable[[], float]:
    """A clock of the seconds for which the calling thread has run or waited for a core. Keeps a file open."""
    descriptor = os.open(_SCHEDSTAT, os.O_RDONLY)

    def awake_s() -> float:
        return time.thread_time() + int(os.pread(descriptor, 100, 0).split()[1]) / 1e9

    return awake_s


def _record() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
