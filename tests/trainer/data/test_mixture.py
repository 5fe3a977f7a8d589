"""Sources take turns as their weights say, as closely as can be, and each goes through its own samples, epoch by epoch."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from zerofleet.trainer.data import order as order_module
from zerofleet.trainer.data.mixture import ONE_SOURCE, Schedule, interleaved, mixed_samples
from zerofleet.trainer.data.order import position_to_sample
from zerofleet.trainer.errors import UserError

WEIGHTS = st.integers(2, 6).flatmap(lambda n: st.lists(st.integers(1, 30), min_size=n, max_size=n))


def schedule_of(weights) -> Schedule:
    return Schedule.of({f"s{index}": weight for index, weight in enumerate(weights)})


def far_off(schedule: Schedule, start: int, length: int) -> np.ndarray:
    """For each prefix of a stretch and each source: samples taken less its share, in parts of a period's length. Exact."""
    period = sum(schedule.counts)
    sources, _ = schedule.at(np.arange(start, start + length))
    taken = np.cumsum(sources[:, None] == np.arange(len(schedule.counts)), axis=0)
    share = np.arange(1, length + 1)[:, None] * np.array(schedule.counts)
    return np.concatenate([np.zeros((1, len(schedule.counts)), int), taken * period - share])


@settings(max_examples=100, deadline=None)
@given(WEIGHTS)
def test_no_source_is_ever_further_than_tijdemans_bound_from_its_share(weights):
    schedule = schedule_of(weights)
    off, period, slack = far_off(schedule, 0, 2 * sum(schedule.counts)), sum(schedule.counts), 2 * len(weights) - 2
    assert np.abs(off).max() * slack <= (slack - 1) * period
    assert (off[period] == 0).all(), "a period has exactly each source's share"


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(0, 10**12))
def test_over_any_window_a_source_is_less_than_two_samples_off_and_of_two_sources_at_most_one(weights, start):
    schedule = schedule_of(weights)
    off = far_off(schedule, start, 2 * sum(schedule.counts))  # a window is the difference of two prefixes
    worst, slack = int((off.max(axis=0) - off.min(axis=0)).max()), len(weights) - 1
    assert worst * slack <= (2 * slack - 1) * sum(schedule.counts)
    if len(weights) == 2:
        assert worst <= sum(schedule.counts)


def test_no_schedule_of_three_sources_is_within_one_sample_over_every_window():
    """Why the bound above is not one: with these weights every schedule, however made, breaks it within ten positions."""
    counts, total = (6, 4, 1), 11
    alive = {(0, 0, 0, 0, 0, 0, 0, 0, 0)}  # per source: how far off it is now, and the least and most that it was
    for _ in range(10):
        grown = set()
        for state, chosen in itertools.product(alive, range(3)):
            after: list[int] = []
            for source, count in enumerate(counts):
                now, low, high = state[3 * source : 3 * source + 3]
                now += total * (source == chosen) - count
                after += [now, min(low, now), max(high, now)]
            if all(after[3 * source + 2] - after[3 * source + 1] <= total for source in range(3)):
                grown.add(tuple(after))
        alive = grown
    assert alive == set()


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.lists(st.integers(1, 50), min_size=6, max_size=6), st.integers(0, 2**32 - 1))
def test_each_source_goes_through_its_samples_once_per_epoch(weights, sizes, seed):
    schedule, sizes = schedule_of(weights), tuple(sizes[: len(weights)])
    positions = np.arange(400)
    samples = mixed_samples(positions, schedule, sizes, seed, "main")
    sources, _ = schedule.at(positions)
    bounds = np.cumsum([0, *sizes])
    for source, name in enumerate(schedule.names):
        mine = samples[sources == source] - bounds[source]
        assert mine.tolist() == position_to_sample(np.arange(len(mine)), sizes[source], seed, name, "main").tolist()


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(0, 10**12))
def test_any_position_is_what_it_would_be_in_a_row(weights, start):
    schedule = schedule_of(weights)
    sources, nth = schedule.at(np.arange(start, start + 50))
    for source in range(len(weights)):
        mine = nth[sources == source]
        assert (np.diff(mine) == 1).all()
        assert schedule.positions_of(source, mine).tolist() == (start + np.flatnonzero(sources == source)).tolist()
    first_sources, first_nth = schedule.at(np.arange(len(weights) * 60))
    assert all(first_nth[first_sources == source][0] == 0 for source in range(len(weights)))


def by_definition(counts: tuple[int, ...]) -> list[int]:
    """Tijdeman's schedule as he states it, position by position, in fractions; slow."""
    total, slack = sum(counts), 2 * len(counts) - 2
    taken, chosen = [0] * len(counts), []
    for position in range(total):
        _, source = min(
            (Fraction((taken[k] + 1) * slack - 1, count), k)
            for k, count in enumerate(counts)
            if count * (position + 1) * slack - taken[k] * slack * total >= total
        )
        chosen.append(source)
        taken[source] += 1
    return chosen


@settings(max_examples=150, deadline=None)
@given(
    WEIGHTS
    | st.lists(st.integers(1, 400), min_size=2, max_size=3)
    | st.lists(st.integers(1, 3), min_size=2, max_size=40)
)
def test_the_schedule_is_tijdemans_bit_for_bit(weights):
    schedule = schedule_of(weights)
    period = schedule.at(np.arange(sum(schedule.counts)))[0]
    assert period.tolist() == by_definition(schedule.counts)


@pytest.mark.parametrize(
    ("weights", "digest"),
    [
        ([99999, 1], "d6c2b1c33355dc1c"),
        ([50021, 49979], "511f6f3305146f66"),
        ([33331, 33343, 33326], "50b906bc883164e6"),
        ([70001, 20011, 9001, 701, 277, 9], "a572316feba97c75"),
    ],
)
def test_the_longest_periods_are_what_they_always_were(weights, digest):
    """Digests of what the definition above gives, which takes seconds; here the keys of two samples are as near as they can be."""
    period = schedule_of(weights).at(np.arange(sum(weights)))[0]
    assert xxhash.xxh3_64_hexdigest(period.astype("<i8").tobytes()) == digest


def test_frozen():
    """Runs resume by position: when this fails, the change makes them repeat and miss samples."""
    schedule = schedule_of([0.7, 0.2, 0.1])
    assert schedule.at(np.arange(10))[0].tolist() == [0, 0, 1, 0, 0, 2, 0, 0, 1, 0]
    assert mixed_samples(np.arange(10**6, 10**6 + 8), schedule, (50, 20, 10), 7, "main").tolist() == [
        40,
        6,
        68,
        30,
        17,
        79,
        39,
        10,
    ]


def test_one_source_is_the_order_that_there_was():
    positions = np.arange(10**9, 10**9 + 100)
    assert np.array_equal(
        mixed_samples(positions, ONE_SOURCE, (77,), 5, "main"), position_to_sample(positions, 77, 5, "corpus", "main")
    )


def test_a_seek_looks_up_one_period_wherever_it_goes(monkeypatch):
    """A seek makes arrays as long as the batch and the period, never as long as what lies before it."""
    schedule, sizes = schedule_of([0.7, 0.2, 0.1]), (10**9, 10**8, 10**7)
    evaluated, feistel = [], order_module._feistel
    monkeypatch.setattr(
        order_module, "_feistel", lambda values, *rest: evaluated.append(len(values)) or feistel(values, *rest)
    )
    for start in (0, 10**9, 10**15):
        del evaluated[:]
        sources, nth = schedule.at(np.arange(start, start + 64))
        assert len(sources) == len(nth) == 64 and len(schedule._period) == 10
        assert len(mixed_samples(np.arange(start, start + 64), schedule, sizes, 0, "main")) == 64
        assert 64 <= sum(evaluated) <= 66


def test_weights_are_what_is_written():
    assert schedule_of([0.7, 0.2, 0.1]).counts == (7, 2, 1)
    assert schedule_of([60, 30.0, 30]).counts == (2, 1, 1)
    assert Schedule.of({"b": 1, "a": 3}) == Schedule(("a", "b"), (3, 1))
    with pytest.raises(
        UserError, match=r"1234567:1000000.*repeats after 2234567 samples.*100000 are the most\. Round them"
    ):
        schedule_of([1.234567, 1])


def test_an_evaluation_takes_the_sources_in_turns_for_as_long_as_they_last():
    schedule = schedule_of([2, 1])
    sizes = (4, 5)
    samples = interleaved(schedule, sizes, 9)
    assert sorted(samples.tolist()) == list(range(9))
    assert (samples[:6] >= 4).astype(int).tolist() == schedule.at(np.arange(6))[0].tolist()
    assert samples[6:].tolist() == [6, 7, 8], "the second source alone goes on"
    for most in range(9):
        assert interleaved(schedule, sizes, most).tolist() == samples[:most].tolist()
    assert interleaved(ONE_SOURCE, (5,), 3).tolist() == [0, 1, 2]
    assert interleaved(schedule, (0, 2), 9).tolist() == [0, 1]
