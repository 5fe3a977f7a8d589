"""The newest state that can be used, in memory and in storage."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict

import pytest

from zerofleet.cluster.hooks import nothing_usable
from zerofleet.trainer.checkpoint.select import newest_snapshot, select_checkpoint
from zerofleet.trainer.checkpoint.snapshot import SnapshotMeta
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId, RunFolder


@pytest.fixture
def run(tmp_path):
    run = RunFolder(str(tmp_path), "r")
    run.create("{}")
    run.claim_attempt(1, None, 2, 1)
    return run


def metas(run, *steps, attempt=1, ranks=(0, 1), world_size=2):
    token = run.attempts()[attempt - 1].token
    pairs = itertools.product(steps, ranks)
    return [SnapshotMeta(step, attempt, "main", rank, world_size, token) for step, rank in pairs]


def test_the_newest_step_that_every_rank_holds(run):
    assert newest_snapshot(run, metas(run, 3, 4)) == CheckpointId(4, 1)
    assert newest_snapshot(run, metas(run, 3, 4) + metas(run, 5, ranks=(1,))) == CheckpointId(4, 1)
    assert newest_snapshot(run, metas(run, 5, ranks=(1,))) is None
    assert newest_snapshot(run, []) is None


def test_one_that_was_found_unusable_is_left_out(run):
    assert newest_snapshot(run, metas(run, 3, 4), frozenset({CheckpointId(4, 1)})) == CheckpointId(3, 1)


def test_snapshots_of_a_past_that_does_not_count_are_left_out(run):
    run.claim_attempt(2, CheckpointId(3, 1), 2, 1)
    assert newest_snapshot(run, metas(run, 3, 4)) == CheckpointId(3, 1)
    assert newest_snapshot(run, metas(run, 3, 4) + metas(run, 5, attempt=2)) == CheckpointId(5, 2)


def test_snapshots_of_another_run_of_this_name_are_left_out(run):
    strangers = [SnapshotMeta(9, 1, "main", rank, 2, "another") for rank in (0, 1)]
    nameless = [SnapshotMeta(9, 1, "main", rank, 2, "") for rank in (0, 1)]
    assert newest_snapshot(run, strangers + nameless) is None


def test_ranks_of_different_world_sizes_make_no_whole(run):
    assert newest_snapshot(run, metas(run, 4, ranks=(0,)) + metas(run, 4, ranks=(1,), world_size=3)) is None


def test_checkpoints_that_were_told_of_and_are_gone_are_no_new_run(run):
    """Whoever lost the folder must hear of it, not train from scratch."""
    assert select_checkpoint(run).found == 0
    writer = run.writer("events", 1)
    for kind, step in (("phase", 1), ("checkpoint", 10), ("checkpoint", 20)):
        writer.append(json.dumps(asdict(Event(kind, 1, 0, step, "save", 0.0))))
    writer.close()
    selection = select_checkpoint(run)
    assert selection.checkpoint is None and selection.found == 2
    assert "none of the run's 2 checkpoints can be used (their files are gone)" in str(nothing_usable(selection))
