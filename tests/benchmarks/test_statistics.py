"""Intervals of medians."""

import random

from zerofleet.benchmarks.statistics import median_interval, order_interval


def test_an_interval_between_values_covers_the_median_as_often_as_promised():
    assert order_interval([1.0] * 5) is None
    assert order_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    draw = random.Random(0)
    found = [order_interval([draw.expovariate(1) for _ in range(30)]) for _ in range(500)]
    covered = sum(low <= 0.693 <= high for low, high in found) / 500
    assert 0.93 <= covered <= 0.99, covered


def test_both_intervals_are_alike():
    draw = random.Random(1)
    values = [draw.gauss(10, 1) for _ in range(100)]
    low, median, high = median_interval(values)
    least, most = order_interval(values)
    assert abs(least - low) < 0.15 and abs(most - high) < 0.15 and least < median < most
