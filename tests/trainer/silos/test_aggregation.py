"""The mean over silos: right, the same in every order, unmoved by what is refused, and in memory that does not grow with the silos."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerofleet.trainer.silos.aggregation import MAX_MAGNITUDE, ChunkSum, Contribution, mean_delta
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.kernels import ADDED_AT_ONCE

COUNT = 100
NAMES = [f"silo{number}" for number in range(9)]


def deltas(num_silos: int, seed: int = 0, count: int = COUNT) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [(draw.standard_normal(count) * 10 ** draw.uniform(-7, 1)).astype(np.float32) for _ in range(num_silos)]


def mean_of(
    values: list[np.ndarray], weights: list[float], order: list[int] | None = None, at_once: int = ADDED_AT_ONCE
) -> np.ndarray:
    total = ChunkSum(len(values[0]), weight_limit=max(1e6, sum(weights)))
    for some in batched(order or range(len(values)), at_once):
        total.add({NAMES[number]: (weights[number], values[number]) for number in some})
    return total.mean()


def batched(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=9), st.integers(0, 100))
@settings(max_examples=50)
def test_it_is_the_mean_weighted_by_tokens(tokens, seed):
    values = deltas(len(tokens), seed)
    limit = max(1e6, sum(tokens))
    exact = sum(weight * delta.astype(np.float64) for weight, delta in zip(tokens, values, strict=True)) / sum(tokens)
    error = np.abs(mean_of(values, tokens) - exact)
    # Half a quantum for each silo, in units of the weights that came, and the rounding to fp32.
    assert (error <= len(tokens) * 2**-45 * limit / sum(tokens) + np.abs(exact) * 2**-23).all()


@given(
    st.permutations(range(9)),
    st.lists(st.floats(0.001, 1e5), min_size=9, max_size=9),
    st.integers(1, ADDED_AT_ONCE),
    st.integers(0, 100),
)
@settings(max_examples=50)
def test_neither_the_order_of_arrival_nor_who_comes_together_changes_a_bit(order, weights, at_once, seed):
    values = deltas(9, seed)
    assert mean_of(values, weights).tobytes() == mean_of(values, weights, order, at_once).tobytes()


def test_plain_sums_would_depend_on_the_order():
    """The property above is not one that any sum has."""
    values = [delta * np.float64(1 / (3 + number)) for number, delta in enumerate(deltas(9))]
    assert sum(values).tobytes() != sum(reversed(values)).tobytes()


@pytest.mark.parametrize("others", [[], ["cairo"], ["cairo", "lima", "osaka"]])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 64.1, -1e30])
def test_what_cannot_be_used_is_named_and_leaves_the_sum_as_it_was(wrong, others):
    values = deltas(3)
    spoilt = values[2].copy()
    spoilt[[17, 40]] = wrong
    total = ChunkSum(COUNT, 1000.0)
    total.add({"berlin": (300, values[0])})
    with pytest.raises(
        UnusableDelta, match=r"silo lagos: 2 of 100 elements are not within \+-64, the first of them .* \(element 17\)"
    ):
        total.add(dict.fromkeys(others, (100, values[1])) | {"lagos": (300, spoilt)})
    assert total.silos == {"berlin"}
    total.add({"quito": (200, values[1])})
    without = ChunkSum(COUNT, 1000.0)
    without.add({"berlin": (300, values[0]), "quito": (200, values[1])})
    assert total.mean().tobytes() == without.mean().tobytes()


@pytest.mark.parametrize("weight", [0.0, -1.0, 71.0, float("inf"), float("nan")])
def test_a_weight_that_no_silo_can_have_is_refused(weight):
    total = ChunkSum(2, 100.0)
    total.add({"berlin": (30, np.float32([1, 2]))})
    with pytest.raises(UnusableDelta, match="silo lagos counts with a weight of .* more than 100"):
        total.add({"lagos": (weight, np.float32([3, 4]))})
    assert total.mean().tolist() == [1, 2]


def test_the_largest_values_of_all_silos_at_full_weight_are_summed_exactly():
    total = ChunkSum(2, 64.0)
    for number in range(64):
        total.add({f"silo{number}": (1, np.float32([MAX_MAGNITUDE, -MAX_MAGNITUDE]))})
    assert total.mean().tolist() == [MAX_MAGNITUDE, -MAX_MAGNITUDE]


def test_each_chunk_has_its_mean_over_more_silos_than_are_added_at_once():
    whole = deltas(len(NAMES), count=250)
    chunks = [Chunk("a", 0, 100), Chunk("a", 100, 100), Chunk("b", 0, 50)]
    offsets = dict(zip(chunks, (0, 100, 200), strict=True))
    weights = [5.0, 1.0, 2.0, 3.0, 1.0, 9.0, 4.0, 7.0, 6.0]
    contributions = {
        NAMES[number]: Contribution(
            weights[number], lambda chunk, number=number: whole[number][offsets[chunk] : offsets[chunk] + chunk.count]
        )
        for number in range(len(NAMES))
    }
    means = [mean_delta(chunk, contributions, 1e6) for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate(means), mean_of(whole, weights))


def test_memory_does_not_grow_with_the_silos():
    chunk, values = Chunk("a", 0, 10_000), np.ones(10_000, np.float32)
    peaks = {}
    for num_silos in (1, 4, 64):  # the first run compiles
        contributions = {str(number): Contribution(1.0, lambda _: values) for number in range(num_silos)}
        tracemalloc.start()
        assert len(mean_delta(chunk, contributions, 64.0)) == chunk.count
        peaks[num_silos] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[64] < peaks[4] + chunk.count  # not a quarter of one more delta
