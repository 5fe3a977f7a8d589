"""What each rank's steps were made of, in sums: a line a minute instead of one per rank and step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from zerofleet.trainer.events import DRIVER, Event

INTERVAL_S = 60.0
_COLUMNS = ("own_s", "data_s", "stall_s")


class RankSums:
    """Of one attempt."""

    def __init__(self, attempt: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempt, self._clock = attempt, clock
        self._since = clock()
        self._sums: dict[int, list[float]] = {}

    def hear(self, event: Event) -> None:
        """Takes in a rank's word at the end of a step."""
        is_step = event.phase == "step" and event.kind in ("step", "phase") and "data_s" in event.data
        if is_step and event.attempt == self._attempt:
            sums = self._sums.setdefault(event.rank, [0.0] * (1 + len(_COLUMNS)))
            for number, value in enumerate((1.0, *(event.data.get(name, 0.0) for name in _COLUMNS))):
                sums[number] += value

    def take(self, is_last: bool = False) -> Event | None:
        """The sums since the last call, when there are some and it is time. The next interval begins."""
        if not self._sums or (self._clock() - self._since < INTERVAL_S and not is_last):
            return None
        ranks = sorted(self._sums)
        data: dict[str, Any] = {"ranks": ranks, "steps": [int(self._sums[rank][0]) for rank in ranks]}
        for number, name in enumerate(_COLUMNS, start=1):
            data[name] = [round(self._sums[rank][number], 6) for rank in ranks]
        self._since, self._sums = self._clock(), {}
        return Event("ranks", self._attempt, DRIVER, 0, "step", time.time(), data=data)
