"""How many times larger one arm's figures are than another's, with an interval that holds whatever the noise is distributed like.

Both work on logarithms, so that a slowdown of p % is a shift, and both are the intervals that belong to rank tests: the
Hodges-Lehmann estimate and the shifts that the test would not reject (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3rd ed.,
3.2-3.3 for pairs, 4.2-4.3 for two samples). A burst that makes one step ten times as long moves them as little as one of two times.

**Pairs** (Wilcoxon's signed ranks) ask one thing only: that a pair's order was drawn by a coin. Then two equal arms give each log ratio one sign
as likely as the other, whatever else the machine does meanwhile: the test is a randomisation test (Fisher 1935), and neither drift nor
autocorrelated noise can make it lie. What is left of a pair's noise is what changes within two steps.

**Two samples** (Mann and Whitney) of two sessions have nothing of that kind. Values of one session are alike in ways that others are not, so
consecutive ones are put together first (batch means, Schmeiser 1982). What differs between two whole sessions, one of each, no test can see.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_PAIRS = 400
"""More are put together: the estimate takes all means of two."""
BATCHES = 10
"""Of a session that is compared with another one. Schmeiser finds 10 to 30; fewer last longer each and depend less on one another."""
_EXACT_PAIRS = 50
"""The normal approximation is good to three digits beyond."""


@dataclass(frozen=True)
class RatioInterval:
    """Second over first."""

    ratio: float
    low: float
    high: float


def paired_ratio(first: Sequence[float], second: Sequence[float], confidence: float) -> RatioInterval | None:
    """Of figures that belong together by their index, in an order drawn for each pair. None: too few pairs for this confidence."""
    assert len(first) == len(second), "pairs"
    shifts = together([math.log(b / a) for a, b in zip(first, second, strict=True)], MOST_PAIRS)
    count = len(shifts)
    outside = _signed_rank_quantile(count, (1 - confidence) / 2)
    means = sorted((a + b) / 2 for i, a in enumerate(shifts) for b in shifts[i:])
    return _interval(means, outside)


def unpaired_ratio(first: Sequence[float], second: Sequence[float], confidence: float) -> RatioInterval | None:
    """Of two sessions' figures, each in the order in which they were measured. None: too few for this confidence."""
    under, over = (together([math.log(value) for value in values], BATCHES) for values in (first, second))
    outside = _rank_sum_quantile(len(under), len(over), (1 - confidence) / 2)
    return _interval(sorted(b - a for a in under for b in over), outside)


def least_pairs(confidence: float) -> int:
    """With fewer no interval of this confidence exists."""
    return _least(lambda count: _signed_rank_quantile(count, (1 - confidence) / 2))


def least_each(confidence: float) -> int:
    """The same of two samples, as many of each. No answer above `BATCHES`: more are put together."""
    return _least(lambda count: _rank_sum_quantile(count, count, (1 - confidence) / 2))


def together(values: Sequence[float], most: int) -> list[float]:
    """Consecutive values as their median, in at most `most` groups of as many (one more or less)."""
    count = min(len(values), most)
    bounds = [len(values) * number // count for number in range(count + 1)] if count else []
    return [statistics.median(values[start:end]) for start, end in itertools.pairwise(bounds)]


def _interval(shifts: list[float], outside: int) -> RatioInterval | None:
    """Of sorted shifts, `outside` + 1 of which lie at or beyond each end."""
    if outside < 0:
        return None
    return RatioInterval(*(math.exp(x) for x in (statistics.median(shifts), shifts[outside], shifts[-1 - outside])))


def _least(quantile: Callable[[int], int]) -> int:
    count = 1
    while quantile(count) < 0:
        count += 1
    return count


@functools.cache
def _signed_rank_quantile(count: int, tail: float) -> int:
    """The largest k with P(sum of the positive ranks <= k) <= tail where signs are a coin's; -1: none."""
    if count > _EXACT_PAIRS:
        mean, variance = count * (count + 1) / 4, count * (count + 1) * (2 * count + 1) / 24
        return math.floor(mean + statistics.NormalDist().inv_cdf(tail) * math.sqrt(variance) - 0.5)
    return _quantile(_signs(count), tail)


def _signs(count: int) -> list[int]:
    """By the sum of the positive ranks, the ways to draw the signs that give it."""
    ways = [1]
    for rank in range(1, count + 1):
        without, with_it = [*ways, *[0] * rank], [*[0] * rank, *ways]
        ways = [a + b for a, b in zip(without, with_it, strict=True)]
    return ways


@functools.cache
def _rank_sum_quantile(first: int, second: int, tail: float) -> int:
    """The same of the number of pairs in which the second sample's value is the smaller one, where all orders are as likely."""
    return _quantile(_orders(first, second), tail)


@functools.cache
def _orders(first: int, second: int) -> list[int]:
    """By that number, the orders of so many values that have it. The largest of all is either sample's (Mann and Whitney 1947)."""
    if first == 0 or second == 0:
        return [1]
    ways = [0] * (first * second + 1)
    for number, count in enumerate(_orders(first - 1, second)):
        ways[number + second] += count
    for number, count in enumerate(_orders(first, second - 1)):
        ways[number] += count
    return ways


def _quantile(ways: Sequence[int], tail: float) -> int:
    total, below = sum(ways), 0
    for number, count in enumerate(ways):
        below += count
        if below > tail * total:
            return number - 1
    return len(ways) - 1
