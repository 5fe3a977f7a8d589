"""Sample order as a function of the position: nothing is stored, any position is reached in O(1).

Each epoch is a keyed permutation of the samples: a generalised Feistel network over [a] x [b] with a * b >= num_samples,
walked along its cycle until it falls inside (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). The round
function is the splitmix64 generator. This is a shuffle, not cryptography: it is keyed to be reproducible, not secret.

The order is frozen: runs resume by position, so a change here would make them repeat and miss samples.
"""

from __future__ import annotations

import json
import math

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.data.quarantine import Ranges

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15


def position_to_sample(positions: Int64, num_samples: int, seed: int, source: str, silo: str) -> Int64:
    """The sample in [0, num_samples) at each position; epoch e is positions [e * num_samples, (e + 1) * num_samples).

    Within an epoch every sample comes once. `positions` are below 2^62, in any order.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}: an order needs at least one sample")
    if len(positions) == 0:
        return np.empty(0, dtype=np.int64)
    epochs, within = np.divmod(np.asarray(positions, dtype=np.int64), num_samples)
    distinct, which = np.unique(epochs, return_inverse=True)
    keys = np.array([_epoch_key(seed, source, int(epoch), silo) for epoch in distinct], dtype=np.uint64)[which]
    # a and b as near to the square root as can be: fewer than a of the a * b values lie outside, so walks are short.
    a = math.isqrt(num_samples - 1) + 1
    b = -(-num_samples // a)
    samples = _feistel(within.astype(np.uint64), a, b, keys)
    outside = np.flatnonzero(samples >= num_samples)
    while len(outside):
        samples[outside] = _feistel(samples[outside], a, b, keys[outside])
        outside = outside[samples[outside] >= num_samples]
    return samples.astype(np.int64)


def _epoch_key(seed: int, source: str, epoch: int, silo: str) -> int:
    return xxhash.xxh3_64_intdigest(json.dumps([seed, source, epoch, silo]).encode())


def _feistel(values: UInt64, a: int, b: int, keys: UInt64) -> UInt64:
    """A permutation of [0, a * b). Each round adds a keyed function of one half to the other, modulo its size."""
    sizes = (np.uint64(a), np.uint64(b))
    left, right = values % sizes[0], values // sizes[0]  # left is in [a], right in [b]; they swap every round
    for round_index in range(_ROUNDS):
        round_keys = _mix(keys + np.uint64((round_index + 1) * _GOLDEN % 2**64))
        size = sizes[round_index % 2]
        # The keyed value is reduced first: a sum that wrapped at 2^64 would not be a permutation any more.
        left, right = right, (left + _mix(round_keys + right * np.uint64(_GOLDEN)) % size) % size
    return left + right * sizes[0]


def _mix(values: UInt64) -> UInt64:
    """The output function of splitmix64 (Steele, Lea & Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def step_positions(step: int, global_batch_size: int, quarantined: Ranges, num_steps: int = 1) -> Int64:
    """The positions that a step takes: [step * B, (step + 1) * B) of what is not quarantined; of `num_steps` steps, one after the other.

    `quarantined` are half-open ranges, ascending and disjoint; the cost grows with their number only.
    """
    positions = np.arange(step * global_batch_size, (step + num_steps) * global_batch_size, dtype=np.int64)
    if not quarantined:
        return positions
    starts, ends = np.array(quarantined, dtype=np.int64).T
    if (starts >= ends).any() or (starts[1:] < ends[:-1]).any() or starts[0] < 0:
        raise ValueError(f"quarantined ranges must be ascending, disjoint and not empty, not {list(quarantined)}")
    skipped = np.concatenate([[0], np.cumsum(ends - starts)])
    # The count of positions let through before each range is what a position's own rank is compared with.
    allowed_before = starts - skipped[:-1]
    shifted: Int64 = positions + skipped[np.searchsorted(allowed_before, positions, side="right")]
    return shifted


def ranges_of(positions: Int64) -> list[list[int]]:
    """Ascending positions as the fewest half-open ranges [[start, end], ...], as the ledger writes them."""
    if len(positions) == 0:
        return []
    gaps = np.flatnonzero(np.diff(positions) != 1)
    assert (np.diff(positions) > 0).all(), "positions of a step ascend"
    starts = positions[np.concatenate([[0], gaps + 1])]
    ends = positions[np.concatenate([gaps, [len(positions) - 1]])] + 1
    return [[int(start), int(end)] for start, end in zip(starts, ends, strict=True)]
