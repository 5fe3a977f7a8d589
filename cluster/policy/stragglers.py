"""Ranks that are slower than the others. Pure: measurements in, findings out.

What is measured must be each rank's own work (trainer/own_time.py). The step's duration will not do: ranks wait for each other in
every step, so that one slow rank makes all of them show the same time, and the slow one is the only one that never waits.

A rank's share of a window is its median over WINDOW_STEPS steps, so that a pause here and there does not count. The windows'
outliers are found by the modified z-score, 0.6745 (x - median) / MAD, above 3.5: Iglewicz and Hoaglin 1993, "How to Detect and
Handle Outliers", which one slow rank cannot hide from by stretching the scale itself. Where half of the ranks are slow (one node of
two, say) nobody is an outlier. Of two ranks the median lies between them: there one is slow when it takes PAIR_RATIO times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

SCALE = 0.6745
"""The 0.75 quantile of the normal distribution: makes MAD / SCALE an estimate of its standard deviation."""
THRESHOLD = 3.5
WINDOW_STEPS = 16
WINDOWS = 3
"""In a row before a rank is named, and before it is forgotten again."""
LEAST_SPREAD = 0.02
"""The MAD counts as at least this part of the median: among ranks that are alike to the millisecond (MAD 0 included), who is less
than THRESHOLD / SCALE x LEAST_SPREAD = 10 % slower is not worth a word."""
PAIR_RATIO = 1.5


@dataclass(frozen=True)
class Straggler:
    """One rank's own work per step, and all ranks' median of it (of two ranks: the other's), in seconds."""

    rank: int
    own_s: float
    median_s: float
    score: float
    """The modified z-score; infinite for one of two ranks."""
    is_over: bool = False
    """It was named, and works as fast as the others again."""

    @property
    def ratio(self) -> float:
        return self.own_s / self.median_s

    def describe(self, where: str) -> str:
        """One sentence; `where` names the rank."""
        share = f"{self.ratio:.2f} x the ranks' median of {self.median_s:.3g} s"
        if self.is_over:
            return f"{where} is no straggler any more: {self.own_s:.3g} s of its own work per step, {share}"
        return (
            f"{where} is a straggler: {self.own_s:.3g} s of its own work per step, {share}, over {WINDOWS * WINDOW_STEPS} steps; "
            "all others wait for it"
        )


def outliers(own_s: dict[int, float]) -> list[Straggler]:
    """The ranks of one window that are slower than the others, the slowest first. O(n log n)."""
    if len(own_s) < 3:
        return _slower_of_two(own_s)
    middle = median(own_s.values())
    spread = max(median(abs(seconds - middle) for seconds in own_s.values()), LEAST_SPREAD * middle)
    if spread <= 0:
        return []
    limit_s = middle + THRESHOLD * spread / SCALE
    found = [Straggler(rank, s, middle, SCALE * (s - middle) / spread) for rank, s in own_s.items() if s > limit_s]
    return sorted(found, key=lambda straggler: -straggler.score)


def _slower_of_two(own_s: dict[int, float]) -> list[Straggler]:
    if len(own_s) < 2:
        return []
    (_, quick_s), (rank, slow_s) = sorted(own_s.items(), key=lambda item: item[1])
    return [Straggler(rank, slow_s, quick_s, float("inf"))] if slow_s > PAIR_RATIO * quick_s > 0 else []


class Stragglers:
    """Watches the ranks of one attempt; keeps WINDOW_STEPS numbers for each."""

    def __init__(self, num_ranks: int) -> None:
        self._own_s: dict[int, list[float]] = {rank: [] for rank in range(num_ranks)}
        self._num_full = 0
        self._slow: dict[int, int] = {}
        """Windows in a row in which a rank was slow, up to WINDOWS, less those in which one that was named was not."""
        self._named: set[int] = set()

    def measured(self, rank: int, own_s: float) -> list[Straggler]:
        """Takes a rank's own work of one step. Who has become a straggler, or is none any more, when this ends a window: once
        every rank has told a whole one. Until then a rank that is ahead of the others adds nothing more."""
        measurements = self._own_s[rank]
        if len(measurements) < WINDOW_STEPS:
            measurements.append(own_s)
            self._num_full += len(measurements) == WINDOW_STEPS
        return self._close() if self._num_full == len(self._own_s) else []

    def _close(self) -> list[Straggler]:
        medians = {rank: median(measurements) for rank, measurements in self._own_s.items()}
        found = {straggler.rank: straggler for straggler in outliers(medians)}
        for measurements in self._own_s.values():
            measurements.clear()
        self._num_full = 0
        over = [rank for rank in self._slow.keys() - found.keys() if self._fade(rank)]
        for rank in found:
            self._slow[rank] = min(WINDOWS, self._slow.get(rank, 0) + 1)
        new = [s for rank, s in found.items() if self._slow[rank] == WINDOWS and rank not in self._named]
        self._named |= {straggler.rank for straggler in new}
        return [*new, *(self._ended(rank, medians) for rank in sorted(over))]

    def _fade(self, rank: int) -> bool:
        """One that was named is forgotten after as many quick windows as named it (True then); one that was not, at once."""
        self._slow[rank] -= 1
        if rank in self._named and self._slow[rank] > 0:
            return False
        del self._slow[rank]
        was_named = rank in self._named
        self._named.discard(rank)
        return was_named

    def _ended(self, rank: int, medians: dict[int, float]) -> Straggler:
        others = median(seconds for other, seconds in medians.items() if other != rank)
        return Straggler(rank, medians[rank], others, 0.0, is_over=True)
