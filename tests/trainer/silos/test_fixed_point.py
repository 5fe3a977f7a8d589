"""Whole numbers modulo 2^k: sums are exact to the quantum and do not wrap around."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.fixed_point import FixedPoint


@given(
    st.sampled_from([16, 32, 64]),
    st.floats(1e-3, 64),
    st.lists(st.integers(1, 1000), min_size=1, max_size=8),
    st.integers(0, 99),
)
def test_the_mean_is_exact_to_half_a_quantum_per_silo(bits, max_magnitude, weights, seed):
    fixed = FixedPoint(bits, max_magnitude)
    draw, limit = np.random.default_rng(seed), sum(weights)
    # fp32 may round up: stay a little below the limit.
    values = [(draw.uniform(-1, 1, 40) * max_magnitude * 0.999).astype(np.float32) for _ in weights]
    total = np.zeros(40, fixed.dtype)
    for weight, value in zip(weights, values, strict=True):
        total += fixed.encode(value, weight / limit)
    exact = sum(weight * value.astype(np.float64) for weight, value in zip(weights, values, strict=True)) / limit
    error = np.abs(fixed.decode_mean(total, 1.0) - exact)
    assert (error <= len(weights) * fixed.quantum / 2 + np.abs(exact) * 2**-23).all()


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("num_silos", [1, 3, 64])
def test_the_largest_values_of_all_silos_do_not_wrap_around(bits, num_silos):
    fixed = FixedPoint(bits, 0.75)
    total = np.zeros(2, fixed.dtype)
    for _ in range(num_silos):
        total += fixed.encode(np.float32([0.75, -0.75]), 1 / num_silos)
    np.testing.assert_allclose(fixed.decode_mean(total, 1.0), [0.75, -0.75], atol=num_silos * fixed.quantum)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1.01, -1e30])
def test_what_would_wrap_around_is_refused(wrong):
    with pytest.raises(UnusableDelta, match=r"element 1 is .* beyond the \+-1 "):
        FixedPoint(32, 1.0).encode(np.float32([0.5, wrong]), 0.5)
