"""Medians and intervals of paired ratios."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

RESAMPLES = 10_000


def median_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Median and its percentile-bootstrap interval (Efron 1979): (low, median, high)."""
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = int(RESAMPLES * (1 - confidence) / 2)
    return medians[tail], statistics.median(values), medians[-tail - 1]
