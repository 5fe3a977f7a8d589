"""Mixtures: which source each position takes its sample from, and its how-many-th sample of it that is. Pure.

Weights are whole numbers once fractions are cleared, so the schedule repeats after as many positions as they sum up to. One period is made at the
start and looked up from then on: any position is reached in O(1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.config import DEFAULT_SOURCE
from zerofleet.trainer.data.order import position_to_sample
from zerofleet.trainer.errors import UserError

Int64 = NDArray[np.int64]

MAX_PERIOD = 100_000
"""Positions after which a schedule must repeat: a second of work at the start."""


@dataclass(frozen=True)
class Schedule:
    """Sources in turns, by weight: names in ascending order, and how many of each period's positions are theirs."""

    names: tuple[str, ...]
    counts: tuple[int, ...]

    @staticmethod
    def of(weights: Mapping[str, float]) -> Schedule:
        """Raises UserError when the weights have no period of at most MAX_PERIOD positions."""
        names = tuple(sorted(weights))
        exact = [Fraction(str(weights[name])) for name in names]  # 0.1 is a tenth, not what is nearest to it in binary
        common = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * common) for weight in exact]
        counts = tuple(count // math.gcd(*whole) for count in whole)
        if sum(counts) > MAX_PERIOD:
            raise UserError(
                f"the weights of data.sources ({', '.join(str(weights[name]) for name in names)}) are to each other as {':'.join(map(str, counts))}: "
                f"a mixture repeats after {sum(counts)} samples then, and {MAX_PERIOD} are the most. Round them"
            )
        return Schedule(names, counts)

    @cached_property
    def _period(self) -> Int64:
        """The source of each position of a period, after R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980).

        With K sources, no source is ever further than 1 - 1/(2K - 2) samples from its share of the positions so far, which is the
        best that can be had for every choice of weights. So over any window it is less than two samples off, and at most one for two sources.
        """
        size, total, slack = len(self.counts), sum(self.counts), 2 * len(self.counts) - 2
        chosen = np.zeros(total, np.int64)
        if size == 1:
            return chosen
        taken = [0] * size
        for position in range(total):
            # Whose next sample would not come too early; of these, whose next sample must come first. Both in whole numbers.
            _, source = min(
                (Fraction((taken[k] + 1) * slack - 1, count), k)
                for k, count in enumerate(self.counts)
                if count * (position + 1) * slack - taken[k] * slack * total >= total
            )
            chosen[position] = source
            taken[source] += 1
        return chosen

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


def mixed_samples(positions: Int64, schedule: Schedule, sizes: tuple[int, ...], seed: int, silo: str) -> Int64:
    """The sample at each position. Each source has its own order and its own epochs; source k's samples follow those of the
    sources before it. `sizes` are the samples of each source."""
    sources, nth = schedule.at(positions)
    samples = np.empty(len(positions), np.int64)
    first = 0
    for source, (name, size) in enumerate(zip(schedule.names, sizes, strict=True)):
        mine = sources == source
        samples[mine] = first + position_to_sample(nth[mine], size, seed, name, silo)
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
