"""Stragglers: named once, by their own work, when it lasts."""

from __future__ import annotations

import math
import random

import pytest

from zerofleet.cluster.policy.stragglers import WINDOW_STEPS, Straggler, Stragglers, outliers

NOISE = random.Random(0)


def window(stragglers: Stragglers, own_s: dict[int, float], spread: float = 0.03) -> list[Straggler]:
    """One window of steps in which each rank works about so long."""
    found = []
    for _ in range(WINDOW_STEPS):
        for rank, seconds in own_s.items():
            found += stragglers.measured(rank, seconds * NOISE.lognormvariate(0, spread))
    return found


ALIKE = dict.fromkeys(range(8), 0.2)
ONE_SLOW = ALIKE | {5: 0.3}


def test_a_slow_rank_is_named_after_three_windows_and_once():
    stragglers = Stragglers(8)
    told = [window(stragglers, ONE_SLOW) for _ in range(10)]
    assert [len(found) for found in told] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    (found,) = told[2]
    assert found.rank == 5 and found.own_s == pytest.approx(0.3, rel=0.05)
    text = found.describe("rank 5 on node b")
    assert text.startswith("rank 5 on node b is a straggler: 0.3") and "1.5" in text and "48 steps" in text


def test_windows_must_follow_each_other():
    stragglers = Stragglers(8)
    assert not any(window(stragglers, own) for own in [ONE_SLOW, ONE_SLOW, ALIKE] * 4)


def test_one_that_recovered_is_named_again_and_one_quick_window_is_no_recovery():
    stragglers = Stragglers(8)
    for _ in range(3):
        window(stragglers, ONE_SLOW)
    assert not any(window(stragglers, own) for own in [ALIKE, ONE_SLOW, ALIKE, ONE_SLOW])
    told = [window(stragglers, ALIKE) for _ in range(5)]
    assert [len(found) for found in told] == [0, 0, 1, 0, 0]
    (over,) = told[2]
    assert over.rank == 5 and over.is_over and over.ratio == pytest.approx(1, rel=0.1)
    assert "rank 5 is no straggler any more" in over.describe("rank 5")
    assert [len(window(stragglers, ONE_SLOW)) for _ in range(3)] == [0, 0, 1]


def test_pauses_do_not_make_a_straggler():
    stragglers = Stragglers(8)
    for step in range(20 * WINDOW_STEPS):
        for rank in range(8):
            pause_s = 2.0 if rank == 3 and step % 5 == 0 else 0.0
            assert not stragglers.measured(rank, 0.2 * NOISE.lognormvariate(0, 0.03) + pause_s)


def test_no_false_word_in_many_windows():
    stragglers = Stragglers(64)
    assert not any(window(stragglers, dict.fromkeys(range(64), 0.2), spread=0.1) for _ in range(60))


def test_the_modified_z_score_is_that_of_iglewicz_and_hoaglin():
    (found,) = outliers({0: 1.0, 1: 1.1, 2: 0.9, 3: 1.05, 4: 0.95, 5: 1.0, 6: 2.0})
    assert found == Straggler(6, 2.0, 1.0, pytest.approx(0.6745 * 1.0 / 0.05))


@pytest.mark.parametrize(
    ("slowest_s", "ranks"), [(1.05, []), (1.10, []), (1.11, [3]), (0.5, [])], ids=["5%", "10%", "11%", "quick"]
)
def test_among_ranks_that_are_all_alike_a_tenth_is_noticed(slowest_s, ranks):
    assert [found.rank for found in outliers({0: 1.0, 1: 1.0, 2: 1.0, 3: slowest_s})] == ranks


@pytest.mark.parametrize("own_s", [{}, {0: 1.0}, {0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0, 2: 0.0}, {0: 1, 1: 1, 2: 9, 3: 9}])
def test_where_nobody_can_be_an_outlier(own_s):
    assert outliers(own_s) == []


def test_of_two_ranks_one_is_slow_when_it_takes_half_as_long_again():
    assert outliers({0: 1.0, 1: 1.49}) == []
    assert outliers({0: 3.1, 1: 2.0}) == [Straggler(0, 3.1, 2.0, math.inf)]


def test_a_pair_of_which_one_recovers():
    stragglers = Stragglers(2)
    told = [window(stragglers, own) for own in [{0: 1.0, 1: 2.0}] * 4 + [{0: 1.0, 1: 1.0}] * 4]
    assert [[(found.rank, found.is_over) for found in findings] for findings in told] == [
        *([], [], [(1, False)], []),
        *([], [], [(1, True)], []),
    ]


def test_several_are_told_the_slowest_first():
    assert [found.rank for found in outliers(dict.fromkeys(range(9), 1.0) | {9: 1.5, 10: 2.0})] == [10, 9]


def test_a_window_waits_for_every_rank():
    stragglers = Stragglers(3)
    for _ in range(10 * WINDOW_STEPS):
        assert not stragglers.measured(0, 9.0)
    assert len(stragglers._own_s[0]) == WINDOW_STEPS
