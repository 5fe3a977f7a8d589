"""When a run has had its hours: the wall time of all its drivers together, what nobody drove in between left out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zerofleet.trainer.events import Event

HOUR_S = 3600.0


def driven_s(started_at: Sequence[float], events: Iterable[Event]) -> float:
    """Seconds that so many drivers have had a run: each from its start (Unix seconds, ascending) to the last thing that was said before the next
    one's. Drivers say something every 10 s."""
    starts, lasts = [*started_at, float("inf")], list(started_at)
    said = sorted(event.start + event.duration_s for event in events)
    for number, (begin, end) in enumerate(pairwise(starts)):
        lasts[number] = max([begin, *(at for at in said if begin <= at < end)])
    return sum(last - begin for begin, last in zip(started_at, lasts, strict=True))


@dataclass
class TimeLimit:
    """Of one driver. `max_hours` 0 is no limit; `before_s` is what the run's earlier drivers took."""

    max_hours: float
    before_s: float
    started_at: float
    """Of this driver, in Unix seconds."""
    is_over: bool = False

    def look(self, now: float, step: int, num_steps: int) -> str:
        """At Unix time `now`, `step` of `num_steps` steps being done: once, when the time is over, a sentence that says so; else nothing. A run
        whose steps are all done is let go to its end."""
        used_s = self.before_s + now - self.started_at
        if self.is_over or not self.max_hours or step >= num_steps or used_s < self.max_hours * HOUR_S:
            return ""
        self.is_over = True
        return (
            f"the run has had {used_s / HOUR_S:.3g} h, and cluster.max_hours is {self.max_hours:g}: it saves at the end of its step and stops. "
            "Resume it with a larger cluster.max_hours"
        )
