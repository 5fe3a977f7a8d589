"""What each rank's steps were made of, in sums: a line a minute instead of one per rank and step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from zerofleet.trainer.events import DRIVER, Event

FIRST_INTERVAL_S, INTERVAL_S = 10.0, 60.0
"""Seconds that sums are over; the first are for whoever watches a run begin."""
_COLUMNS = ("own_s", "data_s", "stall_s")
_MOST = ("memory_bytes", "device_bytes")
"""Of these not the sum but the largest: see memory_use.py."""


class RankSums:
    """Of one attempt."""

    def __init__(self, attempt: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempt, self._clock = attempt, clock
        self._since, self._interval_s = clock(), FIRST_INTERVAL_S
        self._sums: dict[int, list[float]] = {}
        self._most: dict[str, dict[int, int]] = {name: {} for name in _MOST}
        """By name and rank, in bytes."""
        self._snapshots = Counter[int]()
        """How many ranks have a snapshot of a step in memory."""
        self._snapshot_step: int | None = None

    def hear(self, event: Event) -> None:
        """Takes in a rank's word at the end of a step, and that its snapshot is taken."""
        if event.kind == "snapshot" and event.attempt == self._attempt and event.data.get("path") is not None:
            self._hear_snapshot(event)
        is_step = event.phase == "step" and event.kind in ("step", "phase") and "data_s" in event.data
        if is_step and event.attempt == self._attempt:
            sums = self._sums.setdefault(event.rank, [0.0] * (1 + len(_COLUMNS)))
            for number, value in enumerate((1.0, *(event.data.get(name, 0.0) for name in _COLUMNS))):
                sums[number] += value
            for name, most in self._most.items():
                if name in event.data:
                    most[event.rank] = max(most.get(event.rank, 0), event.data[name])

    def _hear_snapshot(self, event: Event) -> None:
        self._snapshots[event.step] += 1
        if self._snapshots[event.step] == event.data["world_size"]:
            self._snapshot_step = event.step
            self._snapshots = Counter({step: count for step, count in self._snapshots.items() if step > event.step})

    def take(self, is_last: bool = False) -> Event | None:
        """The sums since the last call, when there are some and it is time. The next interval begins."""
        if not self._sums or (self._clock() - self._since < self._interval_s and not is_last):
            return None
        ranks = sorted(self._sums)
        data: dict[str, Any] = {"ranks": ranks, "steps": [int(self._sums[rank][0]) for rank in ranks]}
        for number, name in enumerate(_COLUMNS, start=1):
            data[name] = [round(self._sums[rank][number], 6) for rank in ranks]
        for name, most in self._most.items():
            if most:
                data[name] = [most.get(rank) for rank in ranks]
        if self._snapshot_step is not None:
            data["snapshot_step"] = self._snapshot_step
        self._since, self._interval_s, self._sums = self._clock(), INTERVAL_S, {}
        return Event("ranks", self._attempt, DRIVER, 0, "step", time.time(), data=data)
