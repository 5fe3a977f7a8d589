"""Trimmed mean and median: against plain numpy, in any order, with hostile silos."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerofleet.cluster.policy.rounds import num_trimmed_of
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.aggregation import Contribution
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.robust import coordinate_median, robust_delta, trimmed_mean


def honest(num_silos: int, count: int = 50) -> np.ndarray:
    return np.random.default_rng(num_silos).standard_normal((num_silos, count)).astype(np.float32)


@pytest.mark.parametrize("num_silos", range(1, 8))
def test_they_are_what_numpy_says(num_silos):
    values = honest(num_silos)
    np.testing.assert_allclose(coordinate_median(values), np.median(values, axis=0), rtol=1e-6)
    np.testing.assert_allclose(trimmed_mean(values, 0), values.mean(axis=0, dtype=np.float64), rtol=1e-6)
    if num_silos > 2:
        np.testing.assert_allclose(
            trimmed_mean(values, 1), np.sort(values, axis=0)[1:-1].mean(axis=0), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("order", [[6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 2, 5, 1, 4]])
def test_the_order_of_the_silos_changes_no_bit(order):
    values = honest(7)
    for mean in (coordinate_median, lambda stack: trimmed_mean(stack, 2)):
        assert mean(values).tobytes() == mean(values[order]).tobytes()


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32))
def test_hostile_silos_cannot_leave_the_range_of_the_honest_ones(first, second):
    values = np.concatenate([honest(5), np.full((1, 50), first, np.float32), np.full((1, 50), second, np.float32)])
    low, high = values[:5].min(axis=0), values[:5].max(axis=0)
    for mean in (coordinate_median(values), trimmed_mean(values, 2)):
        assert (low <= mean).all() and (mean <= high).all()


def test_too_few_silos_to_trim_are_refused():
    with pytest.raises(UserError, match="leaves out 2 silos on either side needs at least 5 silos, and 4 take part"):
        trimmed_mean(honest(4), 2)


def test_chunk_by_chunk_they_are_the_same_and_weights_do_not_count():
    values = honest(5, count=30)
    contributions = {
        str(silo): Contribution(10.0**silo, lambda chunk, row=row: row[chunk.start : chunk.start + chunk.count])
        for silo, row in enumerate(values)
    }
    chunks = [Chunk("a", 0, 20), Chunk("a", 20, 10)]
    medians = [robust_delta(chunk, contributions, coordinate_median) for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate(medians), coordinate_median(values))
    values[3, 25] = np.nan
    with pytest.raises(UnusableDelta, match="is nan"):
        robust_delta(chunks[1], contributions, coordinate_median)


def test_a_share_of_the_silos_is_rounded_up():
    assert [num_trimmed_of(0.2, n) for n in (4, 5, 6, 10)] == [1, 1, 2, 2]
    assert num_trimmed_of(0.1, 30) == 3, "0.1 x 30 is 3.0000000000000004"
