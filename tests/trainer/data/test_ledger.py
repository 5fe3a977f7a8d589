"""Digests find any change of what was fed, and add up in any order."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from tests.support.costs import costs_at_most, processor_time
from zerofleet.trainer.data.ledger import LedgerEntry, combine, rank_digests_of, sample_digests

RNG = np.random.default_rng(0)
IDS = np.arange(100, 108)
INPUTS = RNG.integers(0, 8192, (8, 16))
LABELS = RNG.integers(-100, 8192, (8, 16))


def test_frozen():
    """The audit compares digests of old runs: when this fails, the change breaks every ledger that exists."""
    inputs = np.arange(12).reshape(3, 4)
    assert sample_digests(np.array([0, 1, 2**40]), inputs, inputs + 1).tolist() == [
        4637528076485880332,
        7099632558872737339,
        3384731401727983922,
    ]
    assert combine(sample_digests(np.array([0, 1, 2**40]), inputs, inputs + 1)) == 15121892037086601593


def test_does_not_depend_on_dtype_or_memory_layout():
    expected = sample_digests(IDS, INPUTS, LABELS)
    assert expected.dtype == np.uint64
    assert np.array_equal(
        sample_digests(IDS.astype(np.int32), INPUTS.astype(np.uint16), LABELS.astype(np.int32)), expected
    )
    assert np.array_equal(sample_digests(IDS, np.asfortranarray(INPUTS), LABELS[:, ::-1].copy()[:, ::-1]), expected)


def test_a_sample_digest_does_not_depend_on_its_neighbours():
    assert np.array_equal(sample_digests(IDS[3:5], INPUTS[3:5], LABELS[3:5]), sample_digests(IDS, INPUTS, LABELS)[3:5])


@pytest.mark.parametrize("change", ["input", "label", "id", "swapped rows", "labels for inputs"])
def test_any_change_changes_the_sum(change):
    ids, inputs, labels = IDS.copy(), INPUTS.copy(), LABELS.copy()
    if change == "input":
        inputs[5, 7] += 1
    elif change == "label":
        labels[0, 0] += 1
    elif change == "id":
        ids[2] = 7
    elif change == "swapped rows":
        inputs[[0, 1]], labels[[0, 1]] = inputs[[1, 0]], labels[[1, 0]]
    else:
        inputs, labels = labels, inputs
    assert combine(sample_digests(ids, inputs, labels)) != combine(sample_digests(IDS, INPUTS, LABELS))


def test_ranks_may_hold_any_share_in_any_order():
    whole = combine(sample_digests(IDS, INPUTS, LABELS))
    shuffled = RNG.permutation(8)
    shares = [combine(sample_digests(IDS[part], INPUTS[part], LABELS[part])) for part in (shuffled[:3], shuffled[3:])]
    assert sum(shares) % 2**64 == whole
    assert combine(np.empty(0, np.uint64)) == 0


def test_cheap_enough_for_every_step():
    ids, tokens = np.arange(32), RNG.integers(0, 50000, (32, 512))
    digests = processor_time(lambda: [combine(sample_digests(ids, tokens, tokens)) for _ in range(20)])
    sha256 = processor_time(lambda: [hashlib.sha256(tokens.tobytes()).digest() for _ in range(20)])
    assert costs_at_most(5, digests, sha256)


def test_entry_survives_json():
    entry = LedgerEntry(3, 1, "main", [[12, 16], [20, 21]], 5, 2555, "00ff00ff00ff00ff")
    assert LedgerEntry.from_dict(json.loads(json.dumps(entry.to_dict()))) == entry


def test_a_line_of_an_older_version_is_read_and_what_a_later_one_adds_is_left_out():
    old = {
        "step": 3,
        "attempt": 1,
        "silo": "main",
        "ranges": [[0, 8]],
        "num_sequences": 8,
        "num_tokens": 9,
        "digest": "f",
    }
    entry = LedgerEntry.from_dict({**old, "later": 1})
    assert entry == LedgerEntry(3, 1, "main", [[0, 8]], 8, 9, "f") and entry.rank_digests == ""


def test_of_every_rank_the_last_16_bits_are_kept():
    assert rank_digests_of([0, 2**64 - 1, 0x123456789]) == "0000ffff6789"
