"""Which ranks have been silent for too long: a limit per phase, learned from the run. Pure: events and a clock in, silences out.

What a rank says is a sign of life, and the limit of the silence that follows depends on the phase that it was in: FACTOR times
the 99th percentile of what was seen there, at least FLOOR_S, at most `stall_s`. A phase that was never seen has `stall_s`, one that
was seen a few times a wider limit than its observations ask for. What is seen:

- `step`: how long steps take, by the ranks' own account (`duration_s`), and the time from one step's end to the next one's.
- the other phases: the time from a sign in the phase to the next sign, which may be the end of the step after it. So their limit
  is never shorter than that of `step`.
- `warm-up`: the time to the end of each of an attempt's first WARM_UP_STEPS steps; the limit of whatever precedes it.

Times between signs are taken from the ranks' clocks, since events arrive in batches; silence from the driver's, of which no more
than POLL_S counts from one look to the next: a driver that was suspended has not listened, and nobody was silent meanwhile.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from zerofleet.trainer.events import RESULTS, Event

FLOOR_S = 2.0
"""The shortest limit."""
SLOW_FLOOR_S = 120.0
"""That of phases which happen once per attempt or wait for storage or for other silos: what they wait for (another node's imports, a compiler, storage
that is away for a minute) says nothing, and an earlier time tells little about it."""
WARM_UP_FLOOR_S = 30.0
FACTOR = 3.0
QUANTILE = 0.99
TRUSTED = 8
"""Observations per rank until a phase's limit is as short as they say; the n-th before gives TRUSTED / n times as much."""
WARM_UP_STEPS = 3
PROMPT = 0.95
"""Silence is told at this part of its limit, so that it has been noticed within the limit when the look is done."""
POLL_S = 0.5
"""Longest time between two looks that counts, and longest time that an event travels."""
DRIFT = 0.001
"""Seconds per second by which two clocks may come apart."""
JUMP_S = 5.0
"""Events do not travel that long: one of the clocks was set."""

_FLOORS_S = dict.fromkeys(("import", "init", "build", "load", "profile", "outer", "save", "end"), SLOW_FLOOR_S) | {
    "warm-up": WARM_UP_FLOOR_S
}
_START_UP = frozenset(("import", "init", "build", "load"))
_NO_SIGNS = frozenset(("exit", "error", "snapshot", "written", "unwritten", "checkpoint"))
"""Kinds that others say about a rank (its agent, its copying thread), and its end."""
_PLACED = RESULTS | {"phase"}
"""Kinds that tell which phase the rank is in."""

Silence = tuple[int, str, float]
"""(rank, phase, seconds)"""


def is_sign(event: Event) -> bool:
    """Whether the rank's main thread said it."""
    return event.kind not in _NO_SIGNS


class Sketch:
    """A quantile of a stream in constant memory, O(1) per value; the newest `window` to 2 x `window` values dominate it.

    Buckets of geometrically growing width, so that the answer is at most 4 % below the true value: Masson, Rim and Lee 2019,
    "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees". All counts are halved when `window`
    more have been added, so that a run's past fades.
    """

    LEAST_S, GROWTH, BUCKETS = 1e-3, 1.04, 450
    """1 ms to 13 hours."""

    def __init__(self, window: int) -> None:
        self._window, self._counts = window, [0.0] * self.BUCKETS
        self._total, self._added = 0.0, 0
        self._answer: float | None = None
        self._highest = 0
        """Bucket above which all are empty."""
        self.seen = 0

    def add(self, value_s: float) -> None:
        index = int(math.log(value_s / self.LEAST_S, self.GROWTH)) if value_s > self.LEAST_S else 0
        index = min(index, self.BUCKETS - 1)
        self._counts[index] += 1
        self._highest = max(self._highest, index)
        self._total += 1
        self._added += 1
        self.seen += 1
        self._answer = None
        if self._added >= self._window:
            self._counts = [count / 2 for count in self._counts]
            self._total, self._added = self._total / 2, 0

    def p99_s(self) -> float:
        """The lower edge of the bucket above which at most 1 % of the values lie: with fewer than 100, of the largest."""
        if self._answer is None:
            above, index = 0.0, self._highest + 1
            while above <= (1 - QUANTILE) * self._total and index > 0:
                index -= 1
                above += self._counts[index]
            self._answer = self.LEAST_S * self.GROWTH**index
        return self._answer


class Limits:
    """What a run has shown so far. Outlives attempts; another number of ranks begins a new one."""

    WINDOW = 1000
    """Steps of each rank."""

    def __init__(self, stall_s: float, num_ranks: int) -> None:
        """`stall_s`: the upper bound of every limit, and the limit of what was never seen."""
        self._stall_s, self._num_ranks = stall_s, num_ranks
        self._seen: defaultdict[str, Sketch] = defaultdict(lambda: Sketch(self.WINDOW * num_ranks))

    def learn(self, phase: str, seconds: float) -> None:
        self._seen[phase].add(seconds)

    def limit_s(self, phase: str) -> float:
        """Seconds of silence in a phase within which a frozen rank is to be noticed."""
        if phase not in self._seen:
            return self._stall_s
        found = self._seen[phase]
        longest = max(found.p99_s(), self.step_p99_s() if phase != "warm-up" else 0.0)
        caution = max(1.0, TRUSTED * self._num_ranks / found.seen)
        return min(self._stall_s, caution * max(_FLOORS_S.get(phase, FLOOR_S), FACTOR * longest))

    def step_p99_s(self) -> float:
        """0 while no step was seen."""
        return self._seen["step"].p99_s() if "step" in self._seen else 0.0


@dataclass(slots=True)
class _Rank:
    """`seen_at` is on the driver's clock, `said_at` (Unix seconds) on the rank's, `apart_s` what lies between the clocks."""

    seen_at: float
    said_at: float | None = None
    """None before its first sign."""
    apart_s: float = math.inf
    phase: str = "import"
    num_steps: int = 0
    """Done in this attempt."""

    @property
    def key(self) -> str:
        """What its next sign is an observation of."""
        is_warm = self.num_steps >= WARM_UP_STEPS or self.phase in _START_UP
        return self.phase if is_warm else "warm-up"


class Heartbeat:
    """The signs of life of one attempt's ranks."""

    def __init__(self, limits: Limits, num_ranks: int, now: float) -> None:
        self._limits, self._polled_at = limits, now
        self._clock = 0.0
        """Seconds that the driver has listened."""
        self._ranks = {rank: _Rank(0.0) for rank in range(num_ranks)}

    def hear(self, event: Event, now: float) -> None:
        """Takes an event of this attempt in. O(1)."""
        self._tick(now)
        rank = self._ranks.get(event.rank)
        if rank is None:
            return
        if event.kind == "exit":
            del self._ranks[event.rank]
        elif event.kind == "snapshot" and rank.phase == "save":
            rank.phase = "snapshot"  # the rank goes on; its agent writes
        elif is_sign(event):
            self._take(rank, event)

    def silent(self, now: float) -> tuple[Silence, ...]:
        """Nobody while every rank is within its limit; else all that are about as silent, who froze and who waits for it."""
        self._tick(now)
        limits = _Memo(self._limits)
        least = min(
            (limits[r.key] for r in self._ranks.values() if self._silence_s(r) >= PROMPT * limits[r.key]), default=0.0
        )
        if not least:
            return ()
        silences = ((number, rank.phase, self._silence_s(rank)) for number, rank in self._ranks.items())
        return tuple(silence for silence in silences if silence[2] >= least / 2)

    def quiet(self, now: float, least_s: float) -> tuple[Silence, ...]:
        """All that have been silent for so long, whatever their limits."""
        self._tick(now)
        silences = ((number, rank.phase, self._silence_s(rank)) for number, rank in self._ranks.items())
        return tuple(silence for silence in silences if silence[2] >= least_s)

    def patience_s(self, now: float) -> float:
        """Seconds until the first rank will have been silent for too long; infinite without ranks."""
        self._tick(now)
        limits = _Memo(self._limits)
        left = (PROMPT * limits[rank.key] - self._silence_s(rank) for rank in self._ranks.values())
        return max(0.0, min(left, default=math.inf))

    def _silence_s(self, rank: _Rank) -> float:
        return self._clock - rank.seen_at

    def _tick(self, now: float) -> None:
        self._clock += max(0.0, min(now - self._polled_at, POLL_S))
        self._polled_at = max(now, self._polled_at)

    def _take(self, rank: _Rank, event: Event) -> None:
        said_at = event.start + event.duration_s
        gap_s = said_at - rank.said_at if rank.said_at is not None else 0.0
        is_late_news = event.kind in RESULTS and gap_s < 0
        self._learn(rank, event, gap_s)
        # Events travel, for who knows how long: the difference of the clocks is that of the event which travelled least.
        apart_s = self._clock - said_at
        rank.seen_at = max(rank.seen_at, self._clock - POLL_S, said_at + min(apart_s, rank.apart_s))
        if is_late_news:
            return
        is_known = apart_s - rank.apart_s < JUMP_S
        rank.apart_s = min(apart_s, rank.apart_s + DRIFT * max(0.0, gap_s)) if is_known else apart_s
        rank.said_at = said_at
        if event.kind in _PLACED:
            rank.phase = event.phase

    def _learn(self, rank: _Rank, event: Event, gap_s: float) -> None:
        key, is_known = rank.key, rank.said_at is not None and gap_s >= 0
        ends_step = event.kind in _PLACED and event.phase == "step"
        if is_known and rank.phase != "step" and (ends_step or key != "warm-up"):
            self._limits.learn(key, gap_s)
        if ends_step:
            rank.num_steps += 1
            key = "step" if rank.num_steps > WARM_UP_STEPS else "warm-up"
            is_whole = is_known and rank.phase == "step"
            self._limits.learn(key, max(event.duration_s, gap_s) if is_whole else event.duration_s)


class _Memo(dict[str, float]):
    """Limits by phase, computed once."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits

    def __missing__(self, phase: str) -> float:
        self[phase] = limit = self._limits.limit_s(phase)
        return limit
