"""Stretches that were not fed once, against counting position by position."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from zerofleet.trainer.data.coverage import Stretch, stretches
from zerofleet.trainer.data.quarantine import union

RANGE = st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda pair: (pair[0], sum(pair)))
RANGES = st.lists(RANGE, max_size=8)


def found(ranges, quarantine, end):
    starts, ends = np.array(ranges, dtype=np.int64).reshape(-1, 2).T
    return stretches(starts, ends, quarantine, end)


@settings(max_examples=200, deadline=None)
@given(RANGES, RANGES.map(union), st.integers(0, 70))
def test_every_position_that_was_not_fed_once_is_found(ranges, quarantine, end):
    fed = Counter(p for start, stop in ranges for p in range(start, stop))
    left_out = {p for start, stop in quarantine for p in range(start, stop)}
    expected = {
        "gap": {p for p in range(end) if not fed[p] and p not in left_out},
        "repeat": {p for p in fed if fed[p] > 1},
        "quarantined": {p for p in fed if p in left_out},
    }
    got: dict[str, list[int]] = {fault: [] for fault in expected}
    for stretch in found(ranges, quarantine, end):
        got[stretch.fault] += range(stretch.start, stretch.end)
    assert {fault: sorted(positions) for fault, positions in expected.items()} == got


def test_what_is_wrong_is_one_stretch_as_long_as_it_can_be():
    ranges = [(0, 10), (10, 20), (5, 15), (12, 14), (40, 50)]
    assert found(ranges, [(38, 41)], 50) == [
        Stretch("repeat", 5, 15),
        Stretch("gap", 20, 38),
        Stretch("quarantined", 40, 41),
    ]


def test_nothing_is_wrong_with_nothing():
    assert found([], [], 0) == []
    assert found([], [(0, 3)], 3) == []
