"""The goodput ledger: what every second of a run went to, in all, per attempt and per rank. Pure.

goodput = counted steps x median step / wall time; the median is the unbroken run's where one is given, else the run's own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from zerofleet.cluster.goodput.history import History
from zerofleet.cluster.goodput.timeline import LABELS, Label, Span, spans_of

Seconds = dict[Label, float]


@dataclass(frozen=True)
class RankTimes:
    """What one rank did in one attempt's steps, in seconds, by the recorder's `ranks` events."""

    steps: int = 0
    own_s: float = 0.0
    """Its own work: trainer/own_time.py."""
    data_s: float = 0.0
    stall_s: float = 0.0

    def plus(self, other: RankTimes) -> RankTimes:
        return RankTimes(
            self.steps + other.steps,
            self.own_s + other.own_s,
            self.data_s + other.data_s,
            self.stall_s + other.stall_s,
        )


@dataclass(frozen=True)
class Ledger:
    """The accounts of one run. All labels together are the wall time."""

    history: History
    spans: tuple[Span, ...]

    @staticmethod
    def of(history: History) -> Ledger:
        return Ledger(history, tuple(spans_of(history)))

    @cached_property
    def wall_s(self) -> float:
        """From the first driver's start to the run's end, less the time in which nobody had the run."""
        return self.history.ended_at - self.history.began_at - self.away_s

    @cached_property
    def away_s(self) -> float:
        """Between a final state and the next driver."""
        begins = [self.history.began_at, *(span.end for span in self.spans)]
        ends = [*(span.start for span in self.spans), self.history.ended_at]
        return sum(max(0.0, end - begin) for begin, end in zip(begins, ends, strict=True))

    @cached_property
    def labels(self) -> Seconds:
        """Of the whole run; every label is there."""
        return _summed(self.spans)

    @cached_property
    def attempts(self) -> dict[int, Seconds]:
        """By attempt, what came before it and its mending included."""
        spans: dict[int, list[Span]] = defaultdict(list)
        for span in self.spans:
            spans[span.attempt].append(span)
        return {attempt: _summed(tuple(found)) for attempt, found in sorted(spans.items())}

    @cached_property
    def rank_times(self) -> dict[tuple[int, int], RankTimes]:
        """By attempt and rank."""
        found: dict[tuple[int, int], RankTimes] = {}
        for event in self.history.events:
            if event.kind != "ranks":
                continue
            data = event.data
            columns = zip(data["ranks"], data["steps"], data["own_s"], data["data_s"], data["stall_s"], strict=True)
            for rank, *values in columns:
                key = event.attempt, rank
                found[key] = found.get(key, RankTimes()).plus(RankTimes(*values))
        return found

    @cached_property
    def rank_memory(self) -> dict[tuple[int, int], dict[str, int]]:
        """By attempt and rank, the most `memory_bytes` and `device_bytes` that it had of its own, as far as they are known."""
        found: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
        for event in self.history.events:
            if event.kind != "ranks":
                continue
            for name in ("memory_bytes", "device_bytes"):
                for rank, size in zip(event.data["ranks"], event.data.get(name, ()), strict=False):
                    if size is not None:
                        mine = found[event.attempt, rank]
                        mine[name] = max(mine.get(name, 0), size)
        return dict(found)

    @cached_property
    def ranks(self) -> dict[tuple[int, int], Seconds]:
        """By attempt and rank: the attempt's labels, with the rank's own waits within the steps that count."""
        found = {}
        for record in self.history.attempts:
            common = self.attempts.get(record.attempt, _summed(()))
            for rank in range(record.world_size):
                found[record.attempt, rank] = self._of_rank(common, record.attempt, rank)
        return found

    def _of_rank(self, common: Seconds, attempt: int, rank: int) -> Seconds:
        mine, zero = self.rank_times.get((attempt, rank)), self.rank_times.get((attempt, 0))
        if mine is None or zero is None:
            return dict(common)
        seconds = dict(common)
        more_s: Seconds = {"data wait": mine.data_s - zero.data_s, "save stall": mine.stall_s - zero.stall_s}
        for label, more in more_s.items():
            more *= self._counted_share(attempt)
            more = min(max(more, -seconds[label]), seconds["step"])
            seconds[label] += more
            seconds["step"] -= more
        return seconds

    def _counted_share(self, attempt: int) -> float:
        steps = [item for item in self.history.by_attempt.get(attempt, ()) if item.kind == "step"]
        return sum(map(self.history.counts, steps)) / len(steps) if steps else 0.0

    @cached_property
    def repeated_s(self) -> float:
        """Of the lost work, the steps that were done and do not count."""
        return sum(step.duration_s for step in self.history.lost)

    def goodput(self, median_s: float | None = None) -> float:
        """`median_s` of the unbroken run; None: the run's own."""
        useful_s = len(self.history.counted) * (self.history.median_step_s if median_s is None else median_s)
        return useful_s / self.wall_s if self.wall_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "wall_s": self.wall_s,
            "away_s": self.away_s,
            "goodput": self.goodput(),
            "median_step_s": self.history.median_step_s,
            "counted_steps": len(self.history.counted),
            "repeated_steps": len(self.history.lost),
            "repeated_s": self.repeated_s,
            "labels": self.labels,
            "attempts": {str(attempt): seconds for attempt, seconds in self.attempts.items()},
            "ranks": {f"{attempt}/{rank}": seconds for (attempt, rank), seconds in self.ranks.items()},
        }


def _summed(spans: tuple[Span, ...]) -> Seconds:
    total: Seconds = dict.fromkeys(LABELS, 0.0)
    for span in spans:
        total[span.label] += span.seconds
    return total
