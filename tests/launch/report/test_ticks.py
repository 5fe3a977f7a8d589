"""Round numbers, and enough of them."""

from __future__ import annotations

import pytest

from zerofleet.launch.report import ticks


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (5.0, 9.0, [5, 6, 7, 8, 9]),
        (0.0, 0.0183, [0, 0.005, 0.01, 0.015, 0.02]),
        (3.195, 5.946, [3, 4, 5, 6]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_around_what_is_drawn(low, high, found):
    assert ticks.around(low, high) == pytest.approx(found)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-9, 1e12])
def test_a_single_value_has_a_scale(value):
    levels = ticks.around(value, value)
    assert levels[0] <= value <= levels[-1] and len(levels) >= 2


def test_steps_are_whole():
    assert ticks.within(1, 3) == [1, 2, 3]
    assert ticks.within(0, 100_000) == [0, 25_000, 50_000, 75_000, 100_000]
    assert ticks.within(7, 7) == [7]


@pytest.mark.parametrize(("total_s", "found"), [(0.5, [0]), (22, [0, 5, 10, 15, 20]), (5000, [0, 1800, 3600])])
def test_times_read_well(total_s, found):
    assert ticks.of_duration(total_s) == found


def test_times_of_months():
    assert len(ticks.of_duration(90 * 86400)) == 6
