"""What a run has written down about itself, and what follows from it about its steps. Pure: launch reads it from the run folder."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from zerofleet.trainer.driver_records import DriverRecord
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import AttemptRecord, last_that_counts


@dataclass(frozen=True)
class History:
    """One run. `events` are in the order of their ends."""

    attempts: tuple[AttemptRecord, ...]
    drivers: tuple[DriverRecord, ...]
    events: tuple[Event, ...]
    results: tuple[Event, ...]
    """`step` and `eval` events, attempt by attempt."""
    now: float | None = None
    """Unix seconds, of a run that is going on; None: it has ended, or died."""

    @cached_property
    def began_at(self) -> float:
        """Unix seconds; 0 when nothing was written down."""
        known = [driver.started_at for driver in self.drivers] + [attempt.claimed_at for attempt in self.attempts]
        return min([*known, *(event.start for event in self.events[:1])], default=0.0)

    @cached_property
    def ended_at(self) -> float:
        """Unix seconds: now, or the end of the last event."""
        if self.now is not None:
            return self.now
        last = max((end_of(result) for result in self.results), default=self.began_at)
        return max(last, end_of(self.events[-1])) if self.events else last

    @cached_property
    def by_attempt(self) -> dict[int, list[Event]]:
        """The results of each attempt in the order of their starts, each step once."""
        found: dict[int, dict[tuple[str, int], Event]] = defaultdict(dict)
        for result in self.results:
            found[result.attempt][result.kind, result.step] = result
        return {number: sorted(items.values(), key=lambda item: item.start) for number, items in found.items()}

    @cached_property
    def events_of(self) -> dict[int, list[Event]]:
        """By attempt."""
        found: dict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            found[event.attempt].append(event)
        return dict(found)

    @cached_property
    def _limits(self) -> dict[int, float]:
        """By attempt, the newest step that counts."""
        last = {record.attempt: last_that_counts(record.attempt, self.attempts) for record in self.attempts}
        return {attempt: math.inf if step is None else step for attempt, step in last.items()}

    def counts(self, step: Event) -> bool:
        """Whether no later attempt started before it."""
        return step.step <= self._limits.get(step.attempt, math.inf)

    @cached_property
    def counted(self) -> dict[int, Event]:
        """The steps that count, by their number."""
        every = (item for items in self.by_attempt.values() for item in items if item.kind == "step")
        return {item.step: item for item in every if self.counts(item)}

    @cached_property
    def lost(self) -> list[Event]:
        """Steps that were done and do not count: they were, or have to be, done again."""
        every = (item for items in self.by_attempt.values() for item in items if item.kind == "step")
        return [item for item in every if not self.counts(item)]

    @cached_property
    def median_step_s(self) -> float:
        """Median seconds from the end of a step to that of the next in the same attempt, whatever lies between them. 0 without any."""
        return median_step_s([item for items in self.by_attempt.values() for item in items if item.kind == "step"])


def median_step_s(steps: Sequence[Event]) -> float:
    """Of `step` events in any order; of a single one its own duration, of none 0."""
    ends: dict[int, dict[int, float]] = defaultdict(dict)
    for event in steps:
        ends[event.attempt][event.step] = end_of(event)
    gaps = [b[1] - a[1] for done in ends.values() for a, b in pairwise(sorted(done.items())) if b[0] == a[0] + 1]
    return statistics.median(gaps or [event.duration_s for event in steps] or [0.0])


def end_of(event: Event) -> float:
    """Unix seconds."""
    return event.start + event.duration_s
