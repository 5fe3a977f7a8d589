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
    if epochs.min() == epochs.max():  # as of nearly every step: all have one key
        return permuted(within, num_samples, _epoch_keys(seed, source, epochs[:1], silo))
    distinct, which = np.unique(epochs, return_inverse=True)
    return permuted(within, num_samples, _epoch_keys(seed, source, distinct, silo)[which])


def permuted(values: Int64, size: int, keys: UInt64) -> Int64:
    """Where the permutation of [0, size) that each one's key names puts each value. `values` are [n], `keys` [n], or [1] for all.

    One evaluation of the network per value and a few more, whatever the size: see `_grid`.
    """
    a, b = _grid(size)
    found = _feistel(values.astype(np.uint64), a, b, keys)
    outside = np.flatnonzero(found >= size)
    while len(outside):
        found[outside] = _feistel(found[outside], a, b, keys if len(keys) == 1 else keys[outside])
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _epoch_keys(seed: int, source: str, epochs: Int64, silo: str) -> UInt64:
    return np.array([key_of(seed, source, int(epoch), silo) for epoch in epochs], dtype=np.uint64)


def key_of(*parts: int | str) -> int:
    """The key of a permutation, of all that it depends on."""
    return xxhash.xxh3_64_intdigest(json.dumps(parts).encode())


def _grid(size: int) -> tuple[int, int]:
    """a and b as near to the square root as can be: fewer than a of the a * b values lie outside [0, size), so a walk is
    longer than one evaluation with a chance of 1 in b at most, and walks of all values together take a * b."""
    a = math.isqrt(size - 1) + 1
    return a, -(-size // a)


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
