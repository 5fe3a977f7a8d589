"""When a run has had its hours, or what it may cost: the wall time of all its drivers together, what nobody drove in between left out. Pure."""

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
    """Of one driver. `max_hours` and `max_cost` 0 are no limits; `before_s` is what the run's earlier drivers took."""

    max_hours: float
    before_s: float
    started_at: float
    """Of this driver, in Unix seconds."""
    max_cost: float = 0.0
    price_per_hour: float = 0.0
    """Of all nodes together."""
    is_over: bool = False

    def look(self, now: float, step: int, num_steps: int) -> str:
        """At Unix time `now`, `step` of `num_steps` steps being done: once, when the time is over, a sentence that says so; else nothing. A run
        whose steps are all done is let go to its end."""
        reached, setting = self._reached((self.before_s + now - self.started_at) / HOUR_S)
        if self.is_over or not reached or step >= num_steps:
            return ""
        self.is_over = True
        return f"{reached}: it saves at the end of its step and stops. Resume it with a larger {setting}"

    def _reached(self, hours: float) -> tuple[str, str]:
        """What limit, in words, and its setting; nothing while there is some left."""
        cost = hours * self.price_per_hour
        if self.max_hours and hours >= self.max_hours:
            return f"the run has had {hours:.3g} h, and cluster.max_hours is {self.max_hours:g}", "cluster.max_hours"
        if self.max_cost and cost >= self.max_cost:
            each = f"its nodes for {hours:.3g} h at {self.price_per_hour:g} an hour together"
            return (
                f"the run has had {each}, which is {cost:.4g}, and cluster.max_cost is {self.max_cost:g}",
                "cluster.max_cost",
            )
        return "", ""
