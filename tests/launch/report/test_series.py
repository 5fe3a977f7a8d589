"""Few points for many, with their extremes."""

from __future__ import annotations

import math

import pytest

from zerofleet.launch.report.series import Point, downsample


def test_few_values_are_kept_as_they_are():
    assert downsample([(1, 2.0), (2, 4.0)]) == [Point(1, 2.0, 2.0, 2.0), Point(2, 4.0, 4.0, 4.0)]
    assert downsample([]) == []


def test_many_become_few_and_nothing_that_stands_out_is_hidden():
    values = [(float(x), 1.0) for x in range(10_000)]
    values[5_003] = (5_003.0, 99.0)
    points = downsample(values, 100)
    assert len(points) == 100 and points[-1].x == 9_999
    assert max(point.most for point in points) == 99.0 and min(point.least for point in points) == 1.0
    assert points[50].mean == pytest.approx(1.98) and points[49].mean == 1.0


def test_what_is_no_number_is_left_out():
    assert downsample([(1, math.nan), (2, math.inf), (3, 5.0)]) == [Point(3, 5.0, 5.0, 5.0)]
    assert downsample([(1, math.nan)]) == []
