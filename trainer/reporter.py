"""What a rank says: signs of life at once, a step's results when the step cannot be lost any more."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from zerofleet.trainer.data.quarantine import Ranges
from zerofleet.trainer.events import Event, Report
from zerofleet.trainer.world import World

RECENT_EVENTS = 64
"""Results of the newest steps that a snapshot holds, in case their node is lost before anyone has heard them."""
SIGN_OF_LIFE_S = 5.0
"""Seconds between two signs of life within a long evaluation, save or load."""

Fault = Callable[[str, int, Ranges], str | None]
"""The one hook for injected faults: `fault(point, step, ranges)` with a phase of events.PHASES, and in `step` the sample positions
of the step that runs. "nan" plants a NaN gradient, "spike" a loss that is a hundred times as high, "wrong_sample" one sample that is
not the rank's."""


def no_fault(point: str, step: int, ranges: Ranges) -> str | None:
    """No faults."""
    return None


class Reporter:
    """One rank's events. `step` is the number of steps done."""

    def __init__(self, world: World, report: Report, fault: Fault) -> None:
        self.step = 0
        self.recent: deque[Event] = deque(maxlen=RECENT_EVENTS)
        self._world, self._report, self.fault = world, report, fault
        self._held: list[Event] = []
        self._alive_at = time.monotonic()

    def event(self, kind: str, phase: str, start: float | None = None, duration_s: float = 0.0, **data: Any) -> None:
        """Told at once."""
        self._report(self._make(kind, phase, start or time.time(), duration_s, data))

    def hold(self, kind: str, phase: str, start: float, duration_s: float, **data: Any) -> None:
        """A step's result: told by `release`, when the step is safe, or is not kept at all."""
        event = self._make(kind, phase, start, duration_s, data)
        self._held.append(event)
        self.recent.append(event)

    def remember(self, events: Sequence[dict[str, Any]]) -> None:
        """Tells what the snapshot remembers from which this rank starts, and remembers it further: it may be that nobody hears this
        attempt either."""
        self.event("recalled", "load", events=events)
        self.recent.extend(Event(**fields) for fields in events)

    def release(self) -> None:
        """Tells what was held."""
        held, self._held = self._held, []
        for event in held:
            self._report(event)

    def begin(self, phase: str, **data: Any) -> str | None:
        """A sign of life, and the place where a fault may strike."""
        self.event("phase", phase, **data)
        return self.fault(phase, self.step, ())

    def alive(self, phase: str) -> None:
        """A sign of life within a phase, now and then."""
        if time.monotonic() - self._alive_at > SIGN_OF_LIFE_S:
            self._alive_at = time.monotonic()
            self.event("phase", phase)

    def _make(self, kind: str, phase: str, start: float, duration_s: float, data: dict[str, Any]) -> Event:
        return Event(kind, self._world.attempt, self._world.rank, self.step, phase, start, duration_s, data)
