"""How long a rank works by itself in a step: what tells a slow rank from those that wait for it. Waiting for data is apart (trainer/waits.py).

A step has work that a rank does alone, the forward passes up to ZeRO stage 2, and work among others: the backward's hooks and the optimizer
wait for other ranks, so that all take as long there as the slowest. What is measured depends on what can be had:

- stages 0 to 2, CPU: alone wall time, which sees whatever slows the rank: its processor, its neighbours, a pause. Among others the time for which the
  main thread was not asleep (it ran, or the kernel had others run on its core): waiting for other ranks is sleep. What makes a rank sleep there, a
  paging machine, is not seen.
- stage 3, CPU: forward gathers weights from other ranks: all of the step counts as among others.
- stages 0 to 2, GPU: alone only, the time between two events in the device's stream, gaps in which it waits for the host included. A rank that is
  slow in backward or in the optimizer alone is not seen.
- stage 3, GPU: the device waits for other ranks within forward, and nothing tells that from work: not measured.
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

Clock = Callable[[], float]


class OwnTime(Protocol):
    """One step's seconds, in sections; each ends where the next one begins, or at `stop`. One that is not ended does not count."""

    def alone(self) -> None: ...
    def among_others(self) -> None: ...
    def stop(self) -> None: ...
    def take(self) -> dict[str, float]:
        """`own_s` of the step that has ended, or nothing where it cannot be measured. The next step begins."""


class HostTime:
    """By clocks of the host."""

    def __init__(self, alone_s: Clock, among_others_s: Clock | None) -> None:
        """Without a clock for it, work among others does not count."""
        self._alone_s, self._among_others_s = alone_s, among_others_s
        self._clock: Clock | None = None
        """Of the section that runs."""
        self._since_s = self._seconds = 0.0

    def alone(self) -> None:
        self._begin(self._alone_s)

    def among_others(self) -> None:
        self._begin(self._among_others_s)

    def stop(self) -> None:
        self._begin(None)

    def take(self) -> dict[str, float]:
        seconds, self._seconds, self._clock = self._seconds, 0.0, None
        return {"own_s": round(seconds, 6)}

    def _begin(self, clock: Clock | None) -> None:
        if self._clock is not None:
            self._seconds += self._clock() - self._since_s
        self._clock = clock
        if clock is not None:
            self._since_s = clock()


class DeviceTime:
    """By events in the current CUDA stream. `take` needs the device to have finished the step."""

    def __init__(self) -> None:
        self._since: torch.cuda.Event | None = None
        self._sections: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def alone(self) -> None:
        self.stop()
        self._since = _record()

    def among_others(self) -> None:
        self.stop()

    def stop(self) -> None:
        if self._since is not None:
            self._sections.append((self._since, _record()))
        self._since = None

    def take(self) -> dict[str, float]:
        sections, self._sections, self._since = self._sections, [], None
        return {"own_s": round(sum(begin.elapsed_time(end) for begin, end in sections) / 1e3, 6)}


class NoTime:
    """Where it cannot be measured."""

    def alone(self) -> None:
        pass

    def among_others(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def take(self) -> dict[str, float]:
        return {}


def own_time(device: torch.device, zero_stage: int) -> OwnTime:
    """The measure for a rank. To be called by the thread that trains."""
    if device.type == "cuda":
        return DeviceTime() if zero_stage < 3 else NoTime()
    awake_s = awake_clock() if _SCHEDSTAT.exists() else None
    if zero_stage < 3:
        return HostTime(time.perf_counter, awake_s)
    return HostTime(awake_s, awake_s) if awake_s is not None else NoTime()


def awake_clock() -> Clock:
    """A clock of the seconds for which the calling thread has run or waited for a core. Keeps a file open."""
    descriptor = os.open(_SCHEDSTAT, os.O_RDONLY)

    def awake_s() -> float:
        return time.thread_time() + int(os.pread(descriptor, 100, 0).split()[1]) / 1e9

    return awake_s


def _record() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
