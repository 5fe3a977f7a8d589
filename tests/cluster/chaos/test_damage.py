"""Damage is what the product must notice: done to real checkpoints and snapshots, found by the real checks."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from tests.support.checkpoints import snapshot, written
from zerofleet.cluster.chaos import damage
from zerofleet.cluster.snapshot_writer import snapshot_folder
from zerofleet.trainer.checkpoint.commit import assemble
from zerofleet.trainer.checkpoint.format import DamagedFile
from zerofleet.trainer.checkpoint.select import select_checkpoint
from zerofleet.trainer.checkpoint.snapshot import hash_snapshot, open_snapshot
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """Two attempts; the first committed step 7, the second step 14."""
    run = RunFolder(str(tmp_path), "a")
    run.claim_attempt(1, None, 2, 1)
    commit(run, CheckpointId(7, 1))
    run.claim_attempt(2, CheckpointId(7, 1), 2, 1)
    commit(run, CheckpointId(14, 2))
    return run


def commit(run: RunFolder, checkpoint: CheckpointId) -> None:
    manifest = assemble([written(run, checkpoint, rank) for rank in (0, 1)])
    run.storage.create(checkpoint.manifest, manifest.to_bytes())


@pytest.mark.parametrize("how", [damage.flip_byte, damage.truncate])
def test_a_damaged_checkpoint_is_found(run, how):
    assert select_checkpoint(run, full=True).checkpoint == CheckpointId(14, 2)
    how(run)
    selection = select_checkpoint(run, full=True)
    assert selection.checkpoint == CheckpointId(7, 1)
    assert [checkpoint for checkpoint, _ in selection.skipped] == [CheckpointId(14, 2)]


def test_a_zombie_verifies_and_is_newer_than_all_and_only_fencing_keeps_it_out(run):
    damage.raise_zombie(run)
    zombie = run.checkpoint_folders()[-1]
    assert (zombie.step, zombie.attempt) == (1014, 1)
    assert select_checkpoint(run, full=True).checkpoint == CheckpointId(14, 2)
    run.storage.remove("attempts/0002.json")
    assert select_checkpoint(run, full=True).checkpoint == zombie


def test_what_a_run_could_not_survive_or_would_prove_nothing_does_not_strike(run, monkeypatch):
    monkeypatch.setattr(damage, "COMMIT_TIMEOUT_S", 0.05)
    for kind in ("zombie", "flip_byte", "truncate"):
        damage.await_target(run, kind, 15)
    run.storage.remove("attempts/0002.json")
    with pytest.raises(TimeoutError, match="Let another fault end the first attempt"):
        damage.await_target(run, "zombie", 15)
    run.storage.remove(CheckpointId(7, 1).folder)
    with pytest.raises(TimeoutError, match="run a had not what truncate needs: a checkpoint before the newest one"):
        damage.await_target(run, "truncate", 15)


def test_a_save_under_way_is_waited_for(run):
    newest = CheckpointId(21, 2)
    parts = [written(run, newest, rank) for rank in (0, 1)]
    waiting = threading.Thread(target=damage.await_target, args=(run, "flip_byte", 22))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    run.storage.create(newest.manifest, assemble(parts).to_bytes())
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_save_whose_rank_waits_for_this_is_not_waited_for(run):
    written(run, CheckpointId(21, 2), 1)  # rank 0's part comes when it has been struck, or never
    for kind in ("zombie", "flip_byte", "truncate"):
        damage.await_target(run, kind, 21)


def test_a_flipped_snapshot_is_found_once_it_was_hashed(run, monkeypatch):
    monkeypatch.setattr(damage, "COMMIT_TIMEOUT_S", 0.05)
    folder = Path(snapshot_folder(run))
    try:
        paths = [snapshot(folder, CheckpointId(step, 2), rank) for step in (19, 20) for rank in (0, 1)]
        with pytest.raises(TimeoutError, match="needs: a snapshot of the step before, and its digest"):
            damage.await_target(run, "flip_snapshot", 21)
        for path in paths:
            hash_snapshot(path)
        damage.await_target(run, "flip_snapshot", 21)
        damage.flip_snapshot(run)
        assert [is_whole(path) for path in paths] == [True, True, True, False], "rank 1's of step 20"
    finally:
        damage.lose_memory(run)


def is_whole(path: Path) -> bool:
    with contextlib.closing(open_snapshot(path)) as found:
        try:
            found.check(found.hash())
        except DamagedFile:
            return False
    return True


def test_the_memory_of_this_run_is_lost_and_no_others(run, tmp_path):
    ours, other = (Path(snapshot_folder(RunFolder(str(tmp_path), name))) for name in ("a", "b"))
    paths = [snapshot(folder, CheckpointId(3, 1), 0) for folder in (ours, other)]
    damage.lose_memory(run)
    assert [path.exists() for path in paths] == [False, True]
    damage.lose_memory(RunFolder(str(tmp_path), "b"))
    assert not other.exists()
