"""Mixtures: which source each position takes its sample from, and its how-many-th sample of it that is. Pure.

Weights are whole numbers once fractions are cleared, so the schedule repeats after as many positions as they sum up to. One period is made at the
start and looked up from then on: any position is reached in O(1).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.config import DEFAULT_SOURCE
from zerofleet.trainer.data.curriculum import staged_ranks
from zerofleet.trainer.data.order import position_to_sample
from zerofleet.trainer.data.weights import turns_of

Int64 = NDArray[np.int64]

_PARTS = 2**33
"""More than MAX_PERIOD^2 / 4, and little enough for 64 bits."""


@dataclass(frozen=True)
class Schedule:
    """Sources in turns, by weight: names in ascending order, and how many of each period's positions are theirs."""

    names: tuple[str, ...]
    counts: tuple[int, ...]

    @staticmethod
    def of(weights: Mapping[str, float]) -> Schedule:
        """Raises UserError when the weights have no period of at most MAX_PERIOD positions."""
        turns = turns_of(weights)
        return Schedule(tuple(turns), tuple(turns.values()))

    @cached_property
    def _period(self) -> Int64:
        """The source of each position of a period, after R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980).

        With K sources, no source is ever further than 1 - 1/(2K - 2) samples from its share of the positions so far, which is the
        best that can be had for every choice of weights. So over any window it is less than two samples off, and at most one for two sources.
        """
        size, total, slack = len(self.counts), sum(self.counts), 2 * len(self.counts) - 2
        if size == 1:
            return np.zeros(total, np.int64)
        # Every sample is a job of one position: it may not come before its release, and of those that may, the one with the earliest
        # deadline comes (earliest deadline first: W. A. Horn, "Some simple scheduling algorithms", Naval Research Logistics 21, 1974).
        sources = np.repeat(np.arange(size), self.counts)
        counts = np.array(self.counts)[sources]
        nth = np.concatenate([np.arange(count) for count in self.counts])
        releases = -(-total * (1 + nth * slack) // (counts * slack)) - 1
        # The deadline, ((nth + 1) slack - 1) / count, in parts of 2^33: two that differ do so by more than 4 / total^2, so by whole parts.
        whole, rest = np.divmod((nth + 1) * slack - 1, counts)
        deadlines = whole * _PARTS + rest * _PARTS // counts
        order = np.argsort(releases, kind="stable")
        jobs = zip(deadlines[order].tolist(), sources[order].tolist(), strict=True)
        waiting: list[tuple[int, int]] = []
        ends = np.searchsorted(releases[order], np.arange(total), side="right")
        taken: list[int] = []
        for num_new in np.diff(ends, prepend=0).tolist():
            for job in itertools.islice(jobs, num_new):
                heapq.heappush(waiting, job)
            taken.append(heapq.heappop(waiting)[1])
        return np.array(taken, np.int64)

    @cached_property
    def _nth(self) -> Int64:
        """The how-many-th of its source's positions in the period each position is, from 0."""
        nth = np.empty_like(self._period)
        for source, count in enumerate(self.counts):
            nth[self._period == source] = np.arange(count)
        return nth

    def at(self, positions: Int64) -> tuple[Int64, Int64]:
        """For each position the index of its source in `names`, and the how-many-th sample of that source it takes, from 0."""
        periods, within = np.divmod(positions, len(self._period))
        sources = self._period[within]
        return sources, periods * np.array(self.counts)[sources] + self._nth[within]

    def positions_of(self, source: int, nth: Int64) -> Int64:
        """The inverse: where each sample of a source has its turn."""
        periods, within = np.divmod(nth, self.counts[source])
        return periods * len(self._period) + np.flatnonzero(self._period == source)[within]


ONE_SOURCE = Schedule((DEFAULT_SOURCE,), (1,))
"""Of a corpus that is no mixture."""


def mixed_samples(
    positions: Int64,
    schedule: Schedule,
    sizes: tuple[int, ...],
    seed: int,
    silo: str,
    num_stages: int = 1,
    ranked: Sequence[Int64] = (),
) -> Int64:
    """The sample at each position. Each source has its own order and its own epochs; source k's samples follow those of the
    sources before it. `sizes` are the samples of each source; with several stages of a curriculum, `ranked` has each source's samples by length."""
    sources, nth = schedule.at(positions)
    samples = np.empty(len(positions), np.int64)
    first = 0
    for source, (name, size) in enumerate(zip(schedule.names, sizes, strict=True)):
        mine = sources == source
        if num_stages == 1:
            samples[mine] = first + position_to_sample(nth[mine], size, seed, name, silo)
        else:
            samples[mine] = first + ranked[source][staged_ranks(nth[mine], size, num_stages, seed, name, silo)]
        first += size
    return samples


def interleaved(schedule: Schedule, sizes: tuple[int, ...], most: int) -> Int64:
    """The first `most` samples, each once, the sources in turns for as long as each lasts: a fair choice for an evaluation."""
    samples, positions = [], []
    starts = np.cumsum([0, *sizes[:-1]])
    for source, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        nth = np.arange(min(size, most))
        samples.append(start + nth)
        positions.append(schedule.positions_of(source, nth))
    order = np.argsort(np.concatenate(positions))
    return np.concatenate(samples)[order[:most]]
