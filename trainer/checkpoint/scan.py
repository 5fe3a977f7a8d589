"""Hashes and digests of a payload in one pass: whoever makes a snapshot durable takes the memory's time from ranks that train."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from zerofleet.trainer.checkpoint.format import BlockHasher
from zerofleet.trainer.checkpoint.fragments import DTYPES, FragmentKey, add_digests, digest

PART_BYTES = 1 << 20
"""Hashed at a time, and then digested while the processor's cache has it."""


def scan(payload: memoryview, fragments: Mapping[FragmentKey, tuple[int, int]]) -> tuple[list[str], dict[str, int]]:
    """The hash of every block of `payload`, as a rank file has them, and what `fragments`, by key their bytes [start, end), add to the
    digests: `kind/name` to a number, as commit.partial_digests. Raises ValueError when they are not of this payload."""
    hasher, sums = BlockHasher(), dict[str, int]()
    waiting = sorted(fragments.items(), key=lambda item: item[1], reverse=True)
    done = 0
    """Elements of the last of `waiting` that are in its sum."""
    for begin in range(0, len(payload), PART_BYTES):
        end = min(begin + PART_BYTES, len(payload))
        hasher.update(payload[begin:end])
        while waiting:
            key, (start, stop) = waiting[-1]
            dtype = DTYPES[key.dtype]
            whole = (min(stop, end) - start) // dtype.itemsize
            if whole > done or stop <= end:  # an empty one has its sum too
                values = np.frombuffer(payload, dtype, whole - done, start + done * dtype.itemsize)
                label = f"{key.kind}/{key.name}"
                sums[label] = add_digests(sums.get(label, 0), digest(values, key.start + done))
                done = whole
            if stop > end:
                break
            waiting.pop()
            done = 0
    if waiting:
        raise ValueError(f"{len(waiting)} fragments end beyond the payload")
    return hasher.finish(), sums
