"""The sample ledger: per step and silo, which positions were fed and a digest of the tokens that really were.

A sample's digest is a hash of its tokens under its own id; digests add up modulo 2^64, so ranks sum theirs in the all-reduce
they have anyway, in any order. The audit recomputes the sum from the cache and finds a step that was fed something else; the rank it
finds by what the line keeps of every rank's own sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from zerofleet.trainer.batch import BatchPlan

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
RANK_DIGEST_DIGITS = 4


def sample_digests(sample_ids: Int64, input_ids: Int64, labels: Int64) -> UInt64:
    """xxh3-64 of each sample, uint64 [n]: over its input ids, then its labels, as little-endian int32, seeded by the sample id.

    `sample_ids` is [n]; `input_ids` and `labels` are [n, L] of any integer dtype. The definition is frozen with the ledger's format.
    """
    assert len(sample_ids) == len(input_ids)
    tokens = np.concatenate([input_ids, labels], axis=1, dtype="<i4", casting="unsafe")
    # Slices of one view of bytes: a view of an array per row would take longer than hashing it.
    data, row_bytes = tokens.ravel().view(np.uint8).data, tokens.shape[1] * tokens.itemsize
    digests = [
        xxhash.xxh3_64_intdigest(data[row * row_bytes : (row + 1) * row_bytes], seed=sample)
        for row, sample in enumerate(sample_ids.tolist())
    ]
    return np.array(digests, dtype=np.uint64)


def combine(digests: UInt64) -> int:
    """The sum modulo 2^64, in [0, 2^64): independent of order and of how samples are dealt to ranks."""
    return int(np.sum(digests, dtype=np.uint64))


@dataclass(frozen=True)
class LedgerEntry:
    """What one step of one silo was fed."""

    step: int
    attempt: int
    silo: str
    ranges: list[list[int]]
    """Half-open position ranges."""
    num_sequences: int
    num_tokens: int
    """Target tokens; padding is none."""
    digest: str
    """Sum of the samples' digests modulo 2^64, 16 hex digits."""
    data: str = ""
    """Fingerprint of the prepared data that all ranks read; empty in ledgers of before it was recorded."""
    micro_batch_size: int = 0
    """Size of the blocks that the global batch was dealt in; 0 as above."""
    rank_digests: str = ""
    """Of every rank in turn, the last RANK_DIGEST_DIGITS hex digits of its own sum; empty as above. They name a rank that was fed
    something else; that it was is what `digest` shows."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> LedgerEntry:
        """Of a line that this or another version has written: what it does not know is left out."""
        return LedgerEntry(**{key: value for key, value in data.items() if key in _FIELDS})


_FIELDS = frozenset(field.name for field in fields(LedgerEntry))


def rank_digests_of(sums: Sequence[int]) -> str:
    """What a ledger line keeps of every rank's sum: 2 bytes a rank, since a line is written for every step."""
    return np.array(sums, dtype=np.uint64).astype(">u2").tobytes().hex()


def wrong_ranks(recorded: str, micro_batch_size: int, digests: UInt64) -> tuple[int, ...] | None:
    """The ranks whose own digest is not that of the samples that they were dealt, of a step's samples in order.

    None: the line does not tell. Two wrong samples of one rank can hide each other in its 16 bits, 1 time in 65,536.
    """
    world_size = len(recorded) // RANK_DIGEST_DIGITS
    if not world_size or micro_batch_size < 1:
        return None
    plan = BatchPlan.of(len(digests), micro_batch_size, world_size)
    wrong = []
    for rank in range(world_size):
        slots = [plan.slots_of(block) for block in plan.blocks_of(rank)]
        mine = rank_digests_of([combine(digests[[slot for part in slots for slot in part]])])
        if mine != recorded[rank * RANK_DIGEST_DIGITS :][:RANK_DIGEST_DIGITS]:
            wrong.append(rank)
    return tuple(wrong)
