"""Amounts of resources, exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerofleet.k8s.quantity import amount, spelled, total


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("500m", Fraction(1, 2)),
        ("64Gi", 64 << 30),
        ("1e3", 1000),
        ("1.5Ki", 1536),
        ("2k", 2000),
        (".5", Fraction(1, 2)),
    ],
)
def test_every_spelling_is_read(text, value):
    assert amount(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "4 Gi", "4gi", "1,5"])
def test_what_is_none_is_refused(text):
    with pytest.raises(ValueError, match="no quantity"):
        amount(text)


@given(st.integers(0, 1 << 62), st.integers(1, 4))
def test_what_is_spelled_means_the_same(number, places):
    value = Fraction(number, 10 ** min(places, 3))
    assert amount(spelled(value)) == value


def test_sums_are_by_resource():
    pods = [{"cpu": "4", "memory": "1Gi"}, {"cpu": "500m", "memory": "200Mi", "nvidia.com/gpu": "8"}]
    assert total(pods, 2) == {"cpu": "9", "memory": "2448Mi", "nvidia.com/gpu": "16"}
    assert total(pods) == {"cpu": "4500m", "memory": "1224Mi", "nvidia.com/gpu": "8"}
