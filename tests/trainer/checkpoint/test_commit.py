"""From rank files to a manifest, and what may become one."""

from __future__ import annotations

import errno
import json
import os

import pytest

from tests.support.checkpoints import VALUES, draft, written
from zerofleet.trainer.checkpoint.commit import Draft, Written, assemble, commit
from zerofleet.trainer.checkpoint.fragments import digest
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.checkpoint.select import select_checkpoint
from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.errors import CheckpointUnusable, StorageError, Superseded
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

KEEP = CheckpointConfig(keep_last=2)


@pytest.fixture
def run(tmp_path):
    run = RunFolder(str(tmp_path), "r")
    run.create("{}")
    run.claim_attempt(1, None, 2, 1)
    return run


def save(run, step, attempt=1, before_commit=lambda: None):
    checkpoint = CheckpointId(step, attempt)
    commit(KEEP, run, assemble([written(run, checkpoint, rank) for rank in (1, 0)]), before_commit)
    return checkpoint


def test_a_commit_can_be_read_and_its_digests_are_those_of_the_whole(run):
    checkpoint = save(run, 4)
    reader = CheckpointReader(run.storage, checkpoint)
    assert reader.read("w", "master", 0, 100).tolist() == VALUES.tolist()
    assert reader.manifest.digests == {"master/w": f"{digest(VALUES, 0):016x}"}
    names = [file.path for file in reader.manifest.rank_files]
    assert names == ["rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"]


def test_drafts_and_files_survive_the_way_as_events(run):
    part = written(run, CheckpointId(4, 1), 0)
    assert Written.from_dict(json.loads(json.dumps(part.to_dict()))) == part
    assert Draft.from_dict(json.loads(json.dumps(draft(3).to_dict()))) == draft(3)


def test_what_must_be_durable_before_is(run):
    def fail():
        raise StorageError("the ledger's disk is full")

    with pytest.raises(StorageError):
        save(run, 4, before_commit=fail)
    assert run.checkpoints() == []


def test_an_older_attempts_save_counts_up_to_where_its_successor_began(run):
    save(run, 4)
    run.claim_attempt(2, CheckpointId(8, 1), 2, 1, from_memory=True)
    save(run, 6)
    save(run, 8)
    with pytest.raises(Superseded, match="attempt 1 ends: attempt 2"):
        save(run, 9)
    assert [(c.step, c.attempt) for c in run.checkpoints()] == [(4, 1), (6, 1), (8, 1)], "and it deletes nothing"


def test_retention_follows_a_commit(run):
    for step in (2, 4, 6, 8):
        save(run, step)
    assert [c.step for c in run.checkpoints()] == [6, 8]


def test_a_checkpoint_that_cannot_be_read_back_costs_none_of_the_others(run):
    save(run, 2)
    save(run, 4)
    checkpoint = CheckpointId(6, 1)
    parts = [written(run, checkpoint, rank) for rank in (0, 1)]
    run.storage.remove(checkpoint.rank_file(1, 2))
    with pytest.raises(CheckpointUnusable, match=r"rank-00001-of-00002.safetensors is missing"):
        commit(KEEP, run, assemble(parts), lambda: None)
    assert {2, 4} <= {c.step for c in run.checkpoints()}


def test_a_missing_rank_is_our_own_mistake(run):
    with pytest.raises(AssertionError):
        assemble([written(run, CheckpointId(4, 1), 0)])


def test_a_commit_that_only_seemed_to_fail_is_made_again(run):
    first = save(run, 4)
    parts = [written(run, CheckpointId(6, 1), rank) for rank in (0, 1)]
    for _ in range(2):
        commit(KEEP, run, assemble(parts), lambda: None)
    assert run.checkpoints() == [first, CheckpointId(6, 1)]


def test_a_disk_that_does_not_say_what_it_holds_costs_no_checkpoint(run, monkeypatch):
    """The good checkpoint of an older attempt would be taken for a leftover, and deleted."""
    save(run, 2)
    save(run, 4)
    run.claim_attempt(2, CheckpointId(4, 1), 2, 1)
    real = os.stat

    def stat(path, *arguments, **named):
        if str(path).endswith(CheckpointId(4, 1).manifest):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(StorageError):
            select_checkpoint(run)
        with pytest.raises(StorageError):
            save(run, 6, attempt=2)
    assert {2, 4} <= {c.step for c in run.checkpoints()}
