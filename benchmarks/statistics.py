"""Medians and their intervals."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

RESAMPLES = 10_000
CONFIDENCE = 0.95


def median_interval(
    values: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float, float]:
    """Median and its percentile-bootstrap interval (Efron 1979): (low, median, high)."""
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = int(RESAMPLES * (1 - confidence) / 2)
    return medians[tail], statistics.median(values), medians[-tail - 1]


def order_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The median's interval between two of the values themselves, which holds for any distribution (the sign test's; Hollander, Wolfe and
    Chicken 2014, 3.6). None: fewer than six values give none of 95 %."""
    count, below, outside = len(values), 0.0, -1
    while (below := below + math.comb(count, outside + 1) / 2**count) <= (1 - confidence) / 2:
        outside += 1
    ordered = sorted(values)
    return (ordered[outside], ordered[-1 - outside]) if outside >= 0 else None
