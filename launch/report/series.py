"""Long series as few points, without hiding what stands out. Pure.

Of each piece the least and the largest are kept beside the mean, as in U. Jugel et al., "M4: A Visualization-Oriented Time Series Data
Aggregation", VLDB 2014: with a piece per column of the drawing, the band covers the very pixels that a line through all values would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_POINTS = 500


@dataclass(frozen=True)
class Point:
    """Of the values in one piece of the x axis: their mean, the least and the largest. `x` is the last one's."""

    x: float
    mean: float
    least: float
    most: float


def downsample(values: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[Point]:
    """(x, y) in the order of x, in at most `most` pieces of equally many values. What is no finite number is left out. O(n)."""
    finite = [(x, y) for x, y in values if math.isfinite(y)]
    size = max(1, -(-len(finite) // most))
    pieces = (finite[start : start + size] for start in range(0, len(finite), size))
    return [_point(piece) for piece in pieces]


def _point(piece: Sequence[tuple[float, float]]) -> Point:
    ys = [y for _, y in piece]
    return Point(piece[-1][0], math.fsum(ys) / len(ys), min(ys), max(ys))
