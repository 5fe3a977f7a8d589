"""Deltas before they count: what is refused chunk by chunk, and whose norm is too far from the others'."""

from __future__ import annotations

import numpy as np
import pytest

from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.inspection import inspect, judge


def test_squares_add_up_to_the_norm():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    squares = inspect(values[:400]) + inspect(values[400:])
    assert squares**0.5 == pytest.approx(float(np.linalg.norm(values.astype(np.float64))))
    assert inspect(np.full(60, 63, np.float32)) == 60 * 63**2  # large as a whole, and no element is


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 65.0, -1e38])
def test_values_that_no_delta_has_are_refused(wrong):
    values = np.zeros(40, np.float32)
    values[7] = wrong
    with pytest.raises(UnusableDelta, match=r"1 of 40 elements .* \(element 7\)"):
        inspect(values)


def test_garbage_is_rejected_by_name_and_the_others_count():
    verdict = judge({"berlin": 1.0, "lagos": 250.0, "quito": 1.5, "osaka": 0.8})
    assert verdict.accepted == {"berlin", "quito", "osaka"}
    assert verdict.rejected == {
        "lagos": "silo lagos: its delta's norm is 250, 250 times the median of the other silos' (1); 10 times is the limit"
    }


def test_garbage_cannot_push_honest_silos_out_while_it_is_the_minority():
    honest = {f"honest{number}": 1.0 + number / 10 for number in range(5)}
    for size in (1e-9, 15.0, 1e9):
        verdict = judge({**honest, "liar": size, "other liar": size})
        assert set(honest) <= verdict.accepted
        assert ("liar" in verdict.rejected) == (size > 10)


@pytest.mark.parametrize(
    ("norms", "accepted"),
    [
        ({}, set()),
        ({"a": 5.0}, {"a"}),
        ({"a": 1.0, "b": 9.9}, {"a", "b"}),
        ({"a": 1.0, "b": 11.0}, {"a", "b"}),  # who is to say
        ({"a": 1.0, "b": 11.0, "c": 1.0}, {"a", "c"}),
        ({"a": 0.0, "b": 0.0, "c": 3.0}, {"a", "b", "c"}),  # nothing to compare with
    ],
)
def test_few_silos(norms, accepted):
    assert judge(norms).accepted == accepted
