"""Counts of values by upper bound, as Prometheus wants them."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class Distribution:
    """`cumulative` has a count for each of `bounds`, of the values up to it; `count` is of all."""

    bounds: tuple[float, ...]
    cumulative: tuple[int, ...]
    count: int
    total: float


class Histogram:
    """`bounds` ascend; larger values count too."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self._total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Distribution:
        cumulative = tuple(itertools.accumulate(self._counts))
        return Distribution(self._bounds, cumulative[:-1], cumulative[-1], self._total)
