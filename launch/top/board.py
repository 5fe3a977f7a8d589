"""What `top` shows of a run, as a reading of its events. Pure: events in, figures out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from zerofleet.cluster.goodput.running import Accounts, RunningLedger
from zerofleet.cluster.policy.stragglers import outliers
from zerofleet.launch.metrics.tiers import Tiers
from zerofleet.launch.screens import event_line
from zerofleet.trainer.driver_records import DriverRecord
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import AttemptRecord

KEPT_LOSSES = 512
KEPT_HAPPENINGS = 8
_NOTABLE = frozenset(("state", "incident", "verdict", "round"))


@dataclass(frozen=True)
class RankFigures:
    """One rank's, per step of the newest sums, in seconds; the most bytes that it had of its own in its attempt."""

    rank: int
    own_s: float
    data_s: float
    stall_s: float
    memory_bytes: int | None
    is_slow: bool


@dataclass(frozen=True)
class Happening:
    """`at` in Unix seconds."""

    at: float
    text: str
    is_bad: bool


class Board:
    """One run's."""

    def __init__(self, drivers: Iterable[DriverRecord] = (), attempts: Iterable[AttemptRecord] = ()) -> None:
        self.tiers, self._ledger = Tiers(), RunningLedger()
        for driver in drivers:
            self._ledger.add_driver(driver)
        for attempt in attempts:
            self._ledger.add_attempt(attempt)
        self.losses: deque[float] = deque(maxlen=KEPT_LOSSES)
        self.happenings: deque[Happening] = deque(maxlen=KEPT_HAPPENINGS)
        self.learning_rate: float | None = None
        self.planned_bytes = 0
        """Of a rank, as `memory_bytes` or, on GPUs, `device_bytes`."""
        self.sums_at = 0.0
        """When the newest sums of the ranks were taken (Unix s); 0 before the first."""
        self._sums: Event | None = None

    def hear(self, event: Event) -> None:
        """Any event of the run, in about the order of their ends."""
        self._ledger.hear(event)
        self.tiers.hear(event)
        if event.kind in _NOTABLE and (line := event_line(event)):
            self.happenings.append(Happening(event.start, line, event.kind in ("incident", "verdict")))
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event)

    def _on_claimed(self, event: Event) -> None:
        self.tiers.claimed(event.data["start_step"], event.data["from_memory"])
        self._sums = None

    def _on_step(self, event: Event) -> None:
        if (loss := event.data.get("loss")) is not None:
            self.losses.append(float(loss))
        self.learning_rate = event.data.get("learning_rate")

    def _on_ranks(self, event: Event) -> None:
        self._sums, self.sums_at = event, event.start

    def _on_plan(self, event: Event) -> None:
        self.planned_bytes = int(event.data.get("device_bytes") or event.data["memory_bytes"])

    def accounts(self, now: float) -> Accounts:
        """`now` in Unix seconds; of a run that nobody has any more, when it was last heard of."""
        return self._ledger.accounts(now)

    @property
    def ranks(self) -> list[RankFigures]:
        """Of the newest sums, the slowest first; none before the first sums of an attempt."""
        if self._sums is None:
            return []
        data = self._sums.data
        memory = data.get("device_bytes") or data.get("memory_bytes") or [None] * len(data["ranks"])
        columns = (data["ranks"], data["steps"], data["own_s"], data["data_s"], data["stall_s"], memory)
        rows = [row for row in zip(*columns, strict=True) if row[1]]
        slow = {found.rank for found in outliers({rank: own_s / steps for rank, steps, own_s, *_ in rows})}
        found = [RankFigures(rank, o / n, d / n, s / n, size, rank in slow) for rank, n, o, d, s, size in rows]
        return sorted(found, key=lambda figures: -figures.own_s)
