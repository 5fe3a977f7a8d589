"""Snapshots are hashed soon after they were taken."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.support.checkpoints import snapshot
from tests.trainer.checkpoint.test_snapshot import digest_of
from zerofleet.cluster.snapshot_hasher import SnapshotHasher
from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.run_folder import CheckpointId

pytestmark = pytest.mark.timeout(30)


def test_every_rank_s_newest_is_hashed(tmp_path):
    paths = [snapshot(tmp_path, CheckpointId(4, 1), rank) for rank in (0, 1)]
    with contextlib.closing(SnapshotHasher(Mappings())) as hasher:
        hasher.order(tmp_path / "gone", 0)
        for rank, path in enumerate(paths):
            hasher.order(path, rank)
        while not all(digest_of(path) for path in paths):
            time.sleep(0.01)


def test_closing_ends_it(tmp_path):
    hasher = SnapshotHasher(Mappings())
    hasher.close()
    hasher.order(snapshot(tmp_path, CheckpointId(4, 1), 0), 0)
    assert not hasher._thread.is_alive()
