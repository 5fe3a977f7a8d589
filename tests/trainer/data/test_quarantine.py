"""Ranges of positions that are left out, against sets of positions."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from zerofleet.trainer.data.order import ranges_of, step_positions
from zerofleet.trainer.data.quarantine import below, named, num_positions, union, without

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda pair: (pair[0], sum(pair))), max_size=6)


def members(ranges):
    return {position for start, end in ranges for position in range(start, end)}


@given(RANGES, RANGES)
def test_a_union_is_the_fewest_ranges_of_all_positions(one, other):
    merged = union(one, other)
    assert members(merged) == members(one) | members(other)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(merged))
    assert num_positions(merged) == len(members(merged))


@given(RANGES, st.integers(0, 80))
def test_the_part_before_a_position(ranges, end):
    assert members(below(union(ranges), end)) == {position for position in members(ranges) if position < end}


@given(RANGES, RANGES)
def test_what_others_do_not_hold(ranges, others):
    left = without(ranges, others)
    assert members(left) == members(ranges) - members(others)
    assert left == union(left)


@settings(max_examples=100, deadline=None)
@given(RANGES, st.integers(0, 12), st.integers(1, 7))
def test_leaving_out_what_a_step_was_fed_moves_that_step_on_and_changes_none_before_it(ranges, step, batch):
    before = union(ranges)
    fed = step_positions(step, batch, before)
    after = union(before, ranges_of(fed))
    for earlier in range(step):
        assert step_positions(earlier, batch, after).tolist() == step_positions(earlier, batch, before).tolist()
    assert step_positions(step, batch, after).tolist() == step_positions(step + 1, batch, before).tolist()


def test_positions_in_words():
    assert named([(152, 160), (170, 171)]) == "positions 152 to 159, 170"
    assert named([]) == "no positions"
