"""Clipping, noise, and the epsilon that follows: against the accountant's own figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.privacy import clip_factor, epsilon_of, norm_of, privatised, standard_normal

KEY = bytes(range(32))
CHUNKS = [Chunk("a", 0, 60), Chunk("a", 60, 41), Chunk("b", 0, 30)]
VALUES = arrays.arrays(np.float32, 131, elements=st.floats(-(2.0**50), 2.0**50, width=32))


def cut(whole: np.ndarray) -> list[np.ndarray]:
    return np.split(whole, [60, 101])


@given(VALUES, st.floats(1e-3, 1e3))
def test_the_whole_delta_is_clipped_to_the_norm_and_keeps_its_direction(whole, clip_norm):
    factor = clip_factor(norm_of(cut(whole)), clip_norm)
    sent = np.concatenate(
        [privatised(part, chunk, factor, 0.0, KEY, 1) for part, chunk in zip(cut(whole), CHUNKS, strict=True)]
    )
    norm = np.linalg.norm(whole.astype(np.float64))
    assert np.linalg.norm(sent.astype(np.float64)) <= clip_norm
    np.testing.assert_allclose(sent, whole * min(1.0, clip_norm / norm if norm else 1.0), rtol=1e-5, atol=1e-40)


def test_a_small_delta_is_left_as_it_is():
    whole = np.full(131, 0.01, np.float32)
    assert clip_factor(norm_of(cut(whole)), 1.0) == 1.0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_clipped_but_refused(wrong):
    whole = np.ones(131, np.float32)
    whole[100] = wrong
    with pytest.raises(UnusableDelta, match="NaN or infinite"):
        norm_of(cut(whole))


def test_the_noise_is_normal():
    draws = standard_normal(0, 200_001, KEY, "test")
    assert len(draws) == 200_001
    # Moments of N(0, 1): 0, 1, 0, 3; six standard errors.
    for power, (expected, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs((draws**power).mean() - expected) < 6 * math.sqrt(variance / len(draws))
    # The two of a pair, and neighbours, are independent.
    for one, other in ((draws[:-1:2], draws[1::2]), (draws[:-1], draws[1:])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 6 / math.sqrt(len(one))


@given(st.integers(0, 50), st.integers(1, 50))
def test_noise_does_not_depend_on_where_a_parameter_is_cut(start, count):
    part = standard_normal(start, count, KEY, "test")
    np.testing.assert_array_equal(part, standard_normal(0, 100, KEY, "test")[start : start + count])


def test_noise_is_the_same_again_for_key_round_and_place_only():
    zero = np.zeros(60, np.float32)
    first = privatised(zero, CHUNKS[0], 1.0, 0.5, KEY, 1)
    assert 0.3 < first.std() < 0.7
    np.testing.assert_array_equal(first, privatised(zero, CHUNKS[0], 1.0, 0.5, KEY, 1))
    others = [
        privatised(zero, CHUNKS[0], 1.0, 0.5, bytes(32), 1),
        privatised(zero, CHUNKS[0], 1.0, 0.5, KEY, 2),
        privatised(zero, Chunk("a", 60, 60), 1.0, 0.5, KEY, 1),
        privatised(zero, Chunk("b", 0, 60), 1.0, 0.5, KEY, 1),
    ]
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.6 and not np.array_equal(first, other)


def test_epsilon_is_the_accountants():
    """The library's own example (`test_gaussian_basic` of its pld_privacy_accountant_test.py): three Gaussian mechanisms of noise
    sqrt(3) and sensitivity 1 are (1, 0.126936)-private together. Our sensitivity is 2, so the noise is twice as large."""
    accounting = pytest.importorskip("dp_accounting", reason="the extra `silos` is not installed")
    assert epsilon_of(2 * math.sqrt(3), 3, 0.126936) == pytest.approx(1, abs=1e-3)
    relation = accounting.NeighboringRelation.REPLACE_ONE
    for noise_multiplier, num_rounds in ((20.0, 4), (20.0, 50)):
        exact = accounting.pld.PLDAccountant(relation)
        exact.compose(accounting.GaussianDpEvent(noise_multiplier), num_rounds)
        assert epsilon_of(noise_multiplier, num_rounds, 1e-5) == pytest.approx(exact.get_epsilon(1e-5), rel=1e-3)
        # An accountant of another kind, which gives an upper bound.
        bound = accounting.rdp.RdpAccountant()
        bound.compose(accounting.GaussianDpEvent(noise_multiplier / 2), num_rounds)
        assert epsilon_of(noise_multiplier, num_rounds, 1e-5) <= bound.get_epsilon(1e-5)


def test_epsilon_grows_with_rounds_and_shrinks_with_noise():
    pytest.importorskip("dp_accounting", reason="the extra `silos` is not installed")
    assert epsilon_of(5.0, 0, 1e-5) == 0
    assert epsilon_of(5.0, 1, 1e-5) < epsilon_of(5.0, 2, 1e-5) < epsilon_of(4.0, 2, 1e-5)
    for noise_multiplier, delta in ((0.0, 1e-5), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(UserError, match="no epsilon for"):
            epsilon_of(noise_multiplier, 1, delta)
