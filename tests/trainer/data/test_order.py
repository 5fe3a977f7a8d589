"""The order is a permutation per epoch, looks uniform, depends on all its keys, and never changes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerofleet.trainer.data import order as order_module
from zerofleet.trainer.data.order import position_to_sample, ranges_of, step_positions

SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 100, 255, 256, 257, 1000, 1023, 6461, 65537]


def order(num_samples: int, epoch: int = 0, seed: int = 0, source: str = "train", silo: str = "main") -> np.ndarray:
    positions = np.arange(epoch * num_samples, (epoch + 1) * num_samples)
    return position_to_sample(positions, num_samples, seed, source, silo)


@pytest.mark.parametrize("num_samples", SIZES)
def test_every_sample_once_per_epoch(num_samples):
    for epoch in (0, 1, 7):
        assert np.array_equal(np.sort(order(num_samples, epoch)), np.arange(num_samples))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.text(max_size=5), st.text(max_size=5))
def test_every_sample_once_for_any_key(num_samples, seed, epoch, source, silo):
    assert np.array_equal(np.sort(order(num_samples, epoch, seed, source, silo)), np.arange(num_samples))


def test_no_two_large_samples_meet():
    num_samples = 10**12 + 39
    samples = position_to_sample(np.arange(5 * num_samples, 5 * num_samples + 300_000), num_samples, 3, "train", "main")
    assert len(np.unique(samples)) == 300_000
    assert samples.min() >= 0 and samples.max() < num_samples


def chi_square_bound(degrees: int) -> float:
    """Far out in the tail: about 6 standard deviations above the mean."""
    return degrees + 6 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("num_samples", [2, 3, 5, 10, 50, 97])
def test_each_sample_is_as_likely_at_each_position(num_samples):
    epochs = 4000
    samples = position_to_sample(np.arange(num_samples * epochs), num_samples, 11, "train", "main")
    samples = samples.reshape(epochs, num_samples)
    expected = epochs / num_samples
    for position in range(num_samples):
        counts = np.bincount(samples[:, position], minlength=num_samples)
        assert ((counts - expected) ** 2 / expected).sum() < chi_square_bound(num_samples - 1)


@pytest.mark.parametrize("num_samples", [3, 4, 7])
def test_each_pair_is_as_likely_at_neighbouring_positions(num_samples):
    epochs, cells = 12000, num_samples * (num_samples - 1)
    samples = position_to_sample(np.arange(num_samples * epochs), num_samples, 5, "train", "main")
    samples = samples.reshape(epochs, num_samples)
    counts = np.bincount(samples[:, 0] * num_samples + samples[:, 1], minlength=num_samples**2)
    counts = counts[counts > 0]
    assert len(counts) == cells
    assert ((counts - epochs / cells) ** 2 / (epochs / cells)).sum() < chi_square_bound(cells - 1)


@pytest.mark.parametrize("num_samples", [6, 11])
def test_each_sample_is_as_likely_at_each_position_over_the_seeds(num_samples):
    seeds = 2000
    samples = np.array([order(num_samples, seed=seed) for seed in range(seeds)])
    for position in range(num_samples):
        counts = np.bincount(samples[:, position], minlength=num_samples)
        assert ((counts - seeds / num_samples) ** 2 / (seeds / num_samples)).sum() < chi_square_bound(num_samples - 1)


def test_neighbours_lie_as_far_apart_as_random_ones():
    num_samples = 10**6
    samples = order(num_samples)
    assert np.abs(np.diff(samples)).mean() == pytest.approx(num_samples / 3, rel=0.01)
    assert abs(np.corrcoef(np.arange(num_samples), samples)[0, 1]) < 0.005


def test_depends_on_seed_epoch_source_and_silo():
    keys = [{}, {"seed": 1}, {"epoch": 1}, {"source": "other"}, {"silo": "other"}, {"source": "main", "silo": "train"}]
    orders = [order(1000, **key) for key in keys]
    for index, first in enumerate(orders):
        for second in orders[index + 1 :]:
            assert (first == second).mean() < 0.02


def test_any_position_alone_gives_what_a_range_gives():
    num_samples, start = 1001, 2500
    together = position_to_sample(np.arange(start, start + 1200), num_samples, 9, "train", "main")
    picked = np.array([1199, 0, 502, 503, 7])  # unordered, over three epochs
    assert np.array_equal(position_to_sample(start + picked, num_samples, 9, "train", "main"), together[picked])


def test_frozen():
    """Runs resume by position: when this fails, the change breaks every run that exists."""
    golden = {
        (1, 0): [0, 0, 0, 0, 0, 0, 0, 0],
        (3, 0): [0, 2, 1, 1, 2, 0, 0, 1],
        (10, 5): [3, 6, 8, 7, 4, 0, 5, 4],
        (6461, 1000000): [6145, 4351, 3307, 1589, 5753, 5139, 1272, 2439],
        (1000000000, 123456789012): [
            297206238,
            931640064,
            745189430,
            875461051,
            332732418,
            384901670,
            42953464,
            666027120,
        ],
        (2305843009213693951, 4611686018427387895): [
            630355939980520293,
            2151653476396619587,
            1260691717354943308,
            21451671837698756,
            29081777973955185,
            1726199660300267320,
            1291333997066266130,
            1333236035663804662,
        ],
    }
    for (num_samples, start), expected in golden.items():
        got = position_to_sample(np.arange(start, start + 8), num_samples, 1234, "train", "main").tolist()
        assert got == expected, (num_samples, start)


@pytest.fixture
def evaluations(monkeypatch) -> list[int]:
    """How many values each call of the network was given: all work that depends on position and size."""
    counted, feistel = [], order_module._feistel
    monkeypatch.setattr(
        order_module, "_feistel", lambda values, *rest: counted.append(len(values)) or feistel(values, *rest)
    )
    return counted


@pytest.mark.parametrize("num_samples", [10**9, 10**9 + 7, 2**30, 3 * 10**12])
def test_seeking_takes_as_many_operations_at_any_position(evaluations, num_samples):
    """A batch of 64 anywhere in a thousand epochs: one evaluation for each, and a second one for hardly any."""
    draw = np.random.default_rng(3)
    for start in [0, num_samples - 32, *draw.integers(0, 1000 * num_samples, 200).tolist()]:
        del evaluations[:]
        position_to_sample(np.arange(start, start + 64), num_samples, 0, "train", "main")
        assert 64 <= sum(evaluations) <= 66 and len(evaluations) <= 3, (start, evaluations)


@pytest.mark.parametrize("num_samples", SIZES)
def test_an_epoch_takes_hardly_more_evaluations_than_samples(evaluations, num_samples):
    """Cycles pass through what lies outside, of which there are fewer than the square root."""
    order(num_samples)
    assert sum(evaluations) <= num_samples + math.isqrt(num_samples - 1) + 1


@pytest.mark.parametrize("num_quarantined", [0, 1, 1000])
def test_a_step_costs_its_own_positions_and_the_quarantined_ranges_only(monkeypatch, num_quarantined):
    """Whatever the step: nothing that is as long as what lies before it is ever made."""
    sizes, arange = [], np.arange
    monkeypatch.setattr(
        np, "arange", lambda *bounds, **kinds: sizes.append(len(made := arange(*bounds, **kinds))) or made
    )
    quarantined = [(10 * k, 10 * k + 3) for k in range(num_quarantined)]
    for step in (0, 10**7, 10**12):
        positions = step_positions(step, 64, quarantined)
        assert len(positions) == 64 and (step == 0 or positions[0] == 64 * step + 3 * num_quarantined)
    assert sum(sizes) == 3 * 64


def test_edges():
    assert position_to_sample(np.empty(0, np.int64), 10, 0, "train", "main").shape == (0,)
    assert position_to_sample(np.arange(3), 10, 0, "train", "main").dtype == np.int64
    with pytest.raises(ValueError, match="num_samples is 0"):
        position_to_sample(np.arange(3), 0, 0, "train", "main")


@st.composite
def quarantines(draw):
    bounds = sorted(draw(st.sets(st.integers(0, 300), max_size=12)))
    return list(zip(bounds[::2], bounds[1::2], strict=False))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9), quarantines())
def test_a_step_takes_the_positions_that_are_not_quarantined(step, batch, quarantined):
    allowed = [p for p in range(1000) if not any(start <= p < end for start, end in quarantined)]
    expected = allowed[step * batch : (step + 1) * batch]
    assert step_positions(step, batch, quarantined).tolist() == expected
    together = allowed[step * batch : (step + 7) * batch]
    assert step_positions(step, batch, quarantined, num_steps=7).tolist() == together


def test_quarantined_ranges_that_touch_are_fine_and_wrong_ones_are_refused():
    assert step_positions(1, 4, [(2, 4), (4, 6), (10, 11)]).tolist() == [8, 9, 11, 12]
    for wrong in ([(4, 4)], [(5, 3)], [(0, 5), (4, 6)], [(8, 9), (1, 2)]):
        with pytest.raises(ValueError, match="ascending, disjoint"):
            step_positions(0, 4, wrong)


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_exactly_the_positions(positions):
    ranges = ranges_of(np.array(sorted(positions), dtype=np.int64))
    assert [p for start, end in ranges for p in range(start, end)] == sorted(positions)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(ranges))
