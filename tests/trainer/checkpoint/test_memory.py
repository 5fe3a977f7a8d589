"""How many buffers fit, and reading a state back from several ranks' snapshots."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from tests.support.checkpoints import draft
from tests.trainer.checkpoint.test_snapshot import flip_payload
from zerofleet.trainer.checkpoint.buffer_set import BufferSet
from zerofleet.trainer.checkpoint.buffers import Buffers, NodeMemory, plan_buffers
from zerofleet.trainer.checkpoint.format import DamagedFile, Scalars
from zerofleet.trainer.checkpoint.fragments import FragmentKey, digest
from zerofleet.trainer.checkpoint.memory import SnapshotReader, node_memory
from zerofleet.trainer.checkpoint.preamble import read_preamble
from zerofleet.trainer.checkpoint.snapshot import REPLICAS, SnapshotMeta, hash_snapshot
from zerofleet.trainer.run_folder import CheckpointId

GIB = 2**30
VALUES = np.arange(100, dtype=np.float32)


@pytest.mark.parametrize(
    ("shm", "free", "size", "count"),
    [(100, 100, 1, 3), (100, 4, 1, 2), (2, 100, 1, 2), (1, 100, 1, 0), (100, 1, 1, 0), (0, 100, 1, 0)],
)
def test_buffers_take_half_of_the_memory_at_most(shm, free, size, count):
    assert plan_buffers(NodeMemory(shm * GIB, free * GIB), size * GIB, has_buddy=False) == Buffers(count, 0)


@pytest.mark.parametrize(
    ("shm", "own", "replicas"), [(9, 5, 2), (7, 5, 2), (6, 4, 2), (5, 3, 2), (4, 3, 0), (2, 2, 0), (1, 0, 0)]
)
def test_a_buddys_replicas_come_before_buffers_to_spare(shm, own, replicas):
    assert plan_buffers(NodeMemory(shm * GIB, 100 * GIB), GIB, has_buddy=True) == Buffers(own, replicas)


def test_a_buffer_is_kept_only_where_two_are_left_to_take_turns():
    found = {(b.own, b.replicas): b.can_keep for b in (Buffers(5, 2), Buffers(4, 2), Buffers(3, 0), Buffers(2, 0))}
    assert found == {(5, 2): True, (4, 2): False, (3, 0): True, (2, 0): False}


def test_what_the_buffers_hold_already_counts_as_free(tmp_path):
    before = node_memory(tmp_path)
    BufferSet(tmp_path, 0, 3).reserve(8 << 20)
    after = node_memory(tmp_path)
    assert after.free_shm_bytes > before.free_shm_bytes - (8 << 20)


def write(folder, rank: int, start: int, end: int, step: int = 4, token: str = "t", world_size: int = 2) -> Path:
    content = None if rank else draft(step).to_dict()
    meta = SnapshotMeta(step, 1, "main", rank, world_size, token, draft=content)
    with BufferSet(folder, rank, 3).fill(meta, [FragmentKey("w", "master", start, end - start, "F32")]) as filling:
        filling.pieces[0][:] = VALUES[start:end].view(np.uint8)
    return filling.path


def test_any_run_of_elements_over_the_ranks_files(tmp_path):
    write(tmp_path, 0, 0, 37)
    write(tmp_path, 1, 37, 100)
    reader = SnapshotReader(tmp_path, CheckpointId(4, 1), 2, "t")
    assert reader.read("w", "master", 30, 20).tolist() == list(range(30, 50))
    assert reader.read_tensor("w", "master").shape == (10, 10)
    assert reader.manifest.scalars == Scalars([4, 4], engine={"global_steps": 4}) and reader.manifest.position == 32
    parts = [reader.partial_digests(rank, 3).get("master/w", 0) for rank in range(3)]
    assert parts[2] == 0, "more ranks than files"
    assert sum(parts) % 2**64 == digest(VALUES, 0)
    reader.close()


@pytest.mark.parametrize("wrong", [{"step": 5}, {"token": "another run's"}])
def test_a_rank_whose_snapshot_is_another_is_named(tmp_path, wrong):
    write(tmp_path, 0, 0, 37)
    write(tmp_path, 1, 37, 100, **wrong)
    with pytest.raises(DamagedFile, match="rank 1's snapshot is neither in .* nor with another node"):
        SnapshotReader(tmp_path, CheckpointId(4, 1), 2, "t")


def test_a_replica_serves_as_the_ranks_own(tmp_path):
    write(tmp_path, 0, 0, 37)
    write(tmp_path / REPLICAS, 1, 37, 100)
    with contextlib.closing(SnapshotReader(tmp_path, CheckpointId(4, 1), 2, "t")) as reader:
        assert reader.read("w", "master", 30, 20).tolist() == list(range(30, 50))


def test_a_gap_between_the_ranks_is_noticed(tmp_path):
    write(tmp_path, 0, 0, 37)
    write(tmp_path, 1, 40, 100)
    reader = SnapshotReader(tmp_path, CheckpointId(4, 1), 2, "t")
    with pytest.raises(DamagedFile, match="no rank file holds elements 37 to 100"):
        reader.read("w", "master", 0, 100)


def test_a_snapshot_that_does_not_hold_what_was_put_there_is_named(tmp_path):
    write(tmp_path, 0, 0, 37)
    path = write(tmp_path, 1, 37, 100)
    hash_snapshot(path)
    flip_payload(path)
    with contextlib.closing(SnapshotReader(tmp_path, CheckpointId(4, 1), 2, "t")) as reader:
        assert reader.partial_digests(0, 2)
        with pytest.raises(DamagedFile, match=rf"{path} does not hold what rank 1 put there in step 4"):
            reader.partial_digests(1, 2)


def test_a_damaged_table_of_fragments_is_damage(tmp_path):
    write(tmp_path, 0, 0, 37)
    path = write(tmp_path, 1, 37, 100)
    with path.open("r+b") as file:
        file.seek(read_preamble(file.fileno()).offset + 8)
        file.write(b"?")
    with pytest.raises(DamagedFile, match="its table of fragments is none"):
        SnapshotReader(tmp_path, CheckpointId(4, 1), 2, "t")
