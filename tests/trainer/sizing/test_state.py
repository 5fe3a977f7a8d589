"""Bytes of checkpoints, snapshots and buffers."""

from __future__ import annotations

import pytest

from zerofleet.trainer.checkpoint.buffers import Buffers
from zerofleet.trainer.sizing import StateSizes


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_per_parameter"),
    [
        (0, "fp32", 16),
        (0, "bf16", 16),
        (1, "fp32", 8 + 12 / 8),
        (1, "bf16", 2 + 4 + 12 / 8),
        (2, "bf16", 2 + (4 + 12) / 8),
        (3, "bf16", 18 / 8),
        (3, "fp32", 20 / 8),
    ],
)
def test_a_ranks_state(stage, precision, bytes_per_parameter):
    sizes = StateSizes(8_000_000, stage, precision, nodes=2, ranks_per_node=4)
    assert sizes.rank_bytes == int(8_000_000 * bytes_per_parameter)


def test_snapshots_are_shared_by_the_nodes_and_buffers_have_room_for_their_description():
    sizes = StateSizes(1000, 1, "bf16", nodes=3, ranks_per_node=2)
    assert (sizes.checkpoint_bytes, sizes.snapshot_bytes) == (12_000, 4_000)
    assert sizes.buffer_bytes(Buffers(5, 2)) == 7 * (4_000 + 2 * 2**20)


def test_16_bit_moments_are_half_as_wide_in_memory_and_in_checkpoints():
    wide, narrow = (StateSizes(8_000_000, 3, "bf16", 2, 4, moments) for moments in ("fp32", "bf16"))
    assert wide.rank_bytes - narrow.rank_bytes == 4 * 8_000_000 // 8
    assert (wide.checkpoint_bytes, narrow.checkpoint_bytes) == (96_000_000, 64_000_000)
