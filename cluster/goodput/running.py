"""The goodput ledger of a run that goes on: takes events as they come, in bounded memory. Pure.

`Ledger` reads a whole history, which a driver of a million steps cannot keep. This one keeps the newest results and what else the
timeline needs, and sums up what lies before: exact while a run goes back by at most WINDOW results, in proportion beyond.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from zerofleet.cluster.goodput.history import History, end_of
from zerofleet.cluster.goodput.ledger import Seconds
from zerofleet.cluster.goodput.timeline import LABELS, Label, spans_of
from zerofleet.cluster.verdict import is_failure
from zerofleet.trainer.driver_records import DriverRecord
from zerofleet.trainer.events import DRIVER, RESULTS, Event
from zerofleet.trainer.run_folder import AttemptRecord

WINDOW = 512
"""Results that are kept at least; twice as many before the older half is summed up."""
_MOST_FAILURES = 64
"""Of one attempt: the first ones say when it broke off."""
_REPEATED: tuple[Label, ...] = ("step", "data wait", "compile")
"""What the time of a step that counted was, and is lost work once it does not any more."""


@dataclass
class _Settled:
    """What was summed up of one attempt: its steps that counted, and its seconds."""

    first: int = 0
    last: int = -1
    seconds: Seconds = field(default_factory=lambda: dict.fromkeys(LABELS, 0.0))

    @property
    def steps(self) -> int:
        return max(0, self.last - self.first + 1)

    def count(self, step: int) -> None:
        self.first, self.last = (step, step) if not self.steps else (min(self.first, step), max(self.last, step))

    def go_back(self, start_step: int) -> None:
        """Another attempt has started there: later steps do not count any more."""
        if not self.steps or self.last <= start_step:
            return
        kept = max(0, start_step - self.first + 1)
        share = 1 - kept / self.steps
        for label in _REPEATED:
            lost_s = share * self.seconds[label]
            self.seconds[label] -= lost_s
            self.seconds["lost work"] += lost_s
        self.last = self.first + kept - 1


@dataclass(frozen=True)
class Accounts:
    """All labels together are the wall time. `goodput` as the ledger's, with the median of the newest steps."""

    seconds: Seconds
    counted_steps: int
    goodput: float


class RunningLedger:
    """One run's. Drivers and attempts are told before what they did."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._drivers: list[DriverRecord] = []
        self._attempts: list[AttemptRecord] = []
        self._events: list[Event] = []
        """In the order of their ends."""
        self._signs: dict[int, Event] = {}
        """By attempt, the newest sign of life."""
        self._results: list[Event] = []
        """Attempt by attempt. What lies before `_until` is there only so that what follows has something to follow."""
        self._newest: dict[tuple[int, str], int] = {}
        self._until = float("-inf")
        """Unix seconds: what lies before is settled."""
        self._settled: dict[int, _Settled] = {}

    def add_driver(self, record: DriverRecord) -> None:
        bisect.insort(self._drivers, record, key=lambda known: known.number)

    def add_attempt(self, record: AttemptRecord) -> None:
        """Those that are known already are passed over."""
        if all(record.attempt != known.attempt for known in self._attempts):
            self._attempts.append(record)
            for settled in self._settled.values():
                settled.go_back(record.start_step)

    def hear(self, event: Event) -> None:
        """Any event of the run, in about the order of their ends."""
        for result in _results_in(event):
            self._take(result)
        if event.kind == "phase" and event.phase not in ("step", "snapshot") and event.rank != DRIVER:
            self._signs[event.attempt] = event
        if self._is_needed(event):
            bisect.insort(self._events, event, key=end_of)
        if len(self._results) > 2 * self._window:
            self._settle()

    def accounts(self, now: float) -> Accounts:
        """`now` in Unix seconds."""
        history = self._history(now)
        seconds = dict.fromkeys(LABELS, 0.0)
        for settled in self._settled.values():
            for label in LABELS:
                seconds[label] += settled.seconds[label]
        for _, label, piece_s in self._spans(history, now):
            seconds[label] += piece_s
        counted = sum(settled.steps for settled in self._settled.values())
        counted += sum(end_of(step) > self._until for step in history.counted.values())
        wall_s = sum(seconds.values())
        return Accounts(seconds, counted, counted * history.median_step_s / wall_s if wall_s > 0 else 0.0)

    def _take(self, result: Event) -> None:
        """A result comes from its rank, with the rank's file and from the snapshot of a later attempt: whichever is first counts."""
        key = result.attempt, result.kind
        if result.step > self._newest.get(key, -1) and end_of(result) > self._until:
            self._newest[key] = result.step
            bisect.insort(self._results, result, key=lambda known: (known.attempt, known.start))

    def _is_needed(self, event: Event) -> bool:
        """Whether the timeline reads it, and would find something else without it."""
        if event.kind == "prepare":
            last = self._events[-1] if self._events else None
            return last is None or last.kind != "prepare" or last.data["stage"] != event.data["stage"]
        if event.kind in ("exit", "error", "node_lost"):
            known = sum(known.attempt == event.attempt and known.kind == event.kind for known in self._events)
            return is_failure(event) and known < _MOST_FAILURES
        if event.kind == "phase":
            return event.rank == 0 and event.phase in ("save", "end")
        return event.kind in ("state", "finished", "stopped")

    def _history(self, now: float) -> History:
        events = sorted([*self._events, *self._signs.values()], key=end_of)
        return History(tuple(self._attempts), tuple(self._drivers), tuple(events), tuple(self._results), now)

    def _spans(self, history: History, until: float) -> Iterator[tuple[int, Label, float]]:
        """Attempt, label and seconds of what is not settled, up to `until`."""
        for span in spans_of(history):
            seconds = min(span.end, until) - max(span.start, self._until)
            if seconds > 0:
                yield span.attempt, span.label, seconds

    def _settle(self) -> None:
        """Sums up the older results, and forgets them but for the last."""
        count = len(self._results) - self._window
        until = end_of(self._results[count - 1])
        history = self._history(end_of(self._results[-1]))
        for attempt, label, seconds in self._spans(history, until):
            self._of(attempt).seconds[label] += seconds
        for step in history.counted.values():
            if self._until < end_of(step) <= until:
                self._of(step.attempt).count(step.step)
        self._results = self._results[count - 1 :]
        self._events = [event for event in self._events if event.kind == "state" or end_of(event) > until]
        self._until = until

    def _of(self, attempt: int) -> _Settled:
        return self._settled.setdefault(attempt, _Settled())


def _results_in(event: Event) -> Iterator[Event]:
    if event.kind in RESULTS:
        yield event
    for fields in event.data.get({"written": "results", "recalled": "events"}.get(event.kind, ""), ()):
        result = Event(**fields)
        if result.kind in RESULTS:
            yield result
