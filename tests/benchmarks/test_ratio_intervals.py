"""Ratios with intervals: against printed tables of the rank tests, and on simulated machines whose noise is known."""

import math
import random

import pytest

from zerofleet.benchmarks.ratio_intervals import (
    _quantile,
    _rank_sum_quantile,
    _signed_rank_quantile,
    _signs,
    least_each,
    least_pairs,
    paired_ratio,
    together,
    unpaired_ratio,
)

TRIALS = 200
MOST_FALSE = 0.05 + 3 * math.sqrt(0.05 * 0.95 / TRIALS)
"""Three standard deviations of a share that is 5 %."""


@pytest.mark.parametrize(("count", "critical"), [(5, -1), (6, 0), (10, 8), (20, 52), (30, 137), (50, 434)])
def test_signed_ranks_are_those_of_the_tables(count, critical):
    assert _signed_rank_quantile(count, 0.025) == critical


@pytest.mark.parametrize("tail", [0.025, 0.005])
def test_of_many_pairs_the_normal_approximation_makes_intervals_a_little_wider_at_most(tail):
    for count in (51, 80):
        exact = _quantile(_signs(count), tail)
        assert 0.99 * exact <= _signed_rank_quantile(count, tail) <= exact


@pytest.mark.parametrize(
    ("first", "second", "critical"), [(3, 3, -1), (4, 4, 0), (5, 5, 2), (8, 8, 13), (5, 10, 8), (10, 10, 23)]
)
def test_rank_sums_are_those_of_the_tables(first, second, critical):
    assert _rank_sum_quantile(first, second, 0.025) == critical


def test_what_cannot_be_told_from_too_few():
    assert (least_pairs(0.95), least_each(0.95)) == (6, 4)
    assert least_pairs(0.99) > 6
    assert paired_ratio([1.0] * 5, [2.0] * 5, 0.95) is None
    assert unpaired_ratio([1.0] * 3, [2.0] * 3, 0.95) is None


def test_a_constant_ratio_is_found_exactly():
    values = [1.0, 2.0, 5.0, 3.0, 8.0, 1.5]
    found = paired_ratio(values, [1.05 * value for value in values], 0.95)
    assert [found.low, found.ratio, found.high] == pytest.approx([1.05] * 3)


def test_values_are_put_together_in_their_order():
    assert together([1, 2, 3, 10, 11, 12, 20], 3) == [1.5, 6.5, 12]
    assert together([3, 1], 10) == [3, 1] and together([], 4) == []


class Machine:
    """Seconds of steps: a slow drift (autoregressive, of lag one), noise of each step, and a burst now and then."""

    def __init__(self, seed: int, drift=0.1, memory=0.98, noise=0.06, bursts=0.03) -> None:
        self.draw, self.level = random.Random(seed), 0.0
        self.drift, self.memory, self.noise, self.bursts = drift, memory, noise, bursts

    def step(self, share: float = 0.0) -> float:
        step = self.drift * math.sqrt(1 - self.memory**2)
        self.level = self.memory * self.level + self.draw.gauss(0, step)
        burst = self.draw.uniform(1.2, 3) if self.draw.random() < self.bursts else 1
        return math.exp(self.level + self.draw.gauss(0, self.noise)) * burst * (1 + share)

    def pairs(self, count: int, share: float = 0.0) -> tuple[list[float], list[float]]:
        first, second = [], []
        for _ in range(count):
            arms = [(first, 0.0), (second, share)]
            self.draw.shuffle(arms)
            for seconds, planted in arms:
                seconds.append(self.step(planted))
        return first, second


@pytest.mark.parametrize("drift", [0.0, 0.1, 0.5])
def test_equal_arms_are_told_apart_as_seldom_as_promised_whatever_drifts(drift):
    found = [paired_ratio(*Machine(seed, drift).pairs(50), 0.95) for seed in range(TRIALS)]
    assert sum(not each.low <= 1 <= each.high for each in found) / TRIALS <= MOST_FALSE


def test_without_a_coin_the_second_of_two_is_slower_on_a_machine_that_warms_up():
    """What the coin is for: a machine that slows down by 2 % per step."""
    seconds = [math.exp(0.02 * index) for index in range(100)]
    assert paired_ratio(seconds[::2], seconds[1::2], 0.95).low > 1.01
    draw, first, second = random.Random(1), [], []
    for pair in zip(seconds[::2], seconds[1::2], strict=True):
        one, other = draw.sample(pair, 2)
        first.append(one)
        second.append(other)
    found = paired_ratio(first, second, 0.95)
    assert found.low <= 1 <= found.high


def test_the_interval_covers_a_planted_slowdown():
    found = [paired_ratio(*Machine(seed).pairs(50, 0.05), 0.95) for seed in range(TRIALS)]
    assert sum(not each.low <= 1.05 <= each.high for each in found) / TRIALS <= MOST_FALSE


def false_alarms(batched: bool) -> float:
    """Of two sessions of the same program, each on a machine that drifts for some steps."""
    count = 0
    for seed in range(TRIALS):
        sessions = [
            [machine.step() for _ in range(200)] for machine in (Machine(seed, 0.1, 0.8), Machine(-seed - 1, 0.1, 0.8))
        ]
        shown = sessions if batched else [session[::20] for session in sessions]
        found = unpaired_ratio(*shown, 0.95)
        count += not found.low <= 1 <= found.high
    return count / TRIALS


def test_sessions_that_drift_within_are_not_told_apart():
    assert false_alarms(batched=True) <= MOST_FALSE + 0.05, "batches of 20 still depend on one another a little"
