"""Fragments and their additive digest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerofleet.trainer.checkpoint.fragments import FragmentKey, add_digests, digest, equal_part


@given(st.integers(0, 2**32 - 1), st.integers(1, 5000), st.lists(st.integers(0, 5000), max_size=5))
def test_the_digest_does_not_depend_on_how_a_tensor_is_cut(seed, size, cuts):
    values = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    bounds = sorted({0, size, *(min(c, size) for c in cuts)})
    parts = [digest(values[a:b], a) for a, b in itertools.pairwise(bounds)]
    assert add_digests(*parts) == digest(values, 0)


def test_the_digest_is_frozen():
    """Checkpoints on disk hold these numbers: a change here makes every one of them unreadable."""
    assert f"{digest(np.arange(100_000, dtype=np.float32), 0):016x}" == "4688e1363b0b39a0"
    assert f"{digest(np.arange(7, dtype=np.uint16), 3):016x}" == "ae4c365424dfc048"


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.uint8, np.int64])
def test_the_digest_sees_a_bit_a_swap_and_a_shift(dtype):
    values = np.random.default_rng(1).integers(0, 200, 1000).astype(dtype)
    flipped, swapped = values.copy(), values.copy()
    flipped.view(np.uint8)[17] ^= 1
    swapped[[3, 4]] = swapped[[4, 3]] if swapped[3] != swapped[4] else (1, 2)
    found = {digest(v, s) for v, s in [(values, 0), (flipped, 0), (swapped, 0), (values, 1), (np.roll(values, 1), 0)]}
    assert len(found) == 5


@given(st.integers(0, 1000), st.integers(1, 64))
def test_equal_parts_cover_everything_once(size, world_size):
    parts = [equal_part(size, rank, world_size) for rank in range(world_size)]
    assert parts[0][0] == 0 and parts[-1][1] == size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1


def test_a_label_holds_the_key_whatever_the_name():
    key = FragmentKey("model.layers.0/odd/name", "exp_avg", 12345, 7, "F32")
    assert FragmentKey.parse(key.label(), 7, "F32") == key
