"""Rank files come from many nodes, late, twice or never; a commit is made of all of them or not at all."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict

import pytest

from tests.cluster.fakes import event
from tests.support.checkpoints import written
from zerofleet.cluster import commits
from zerofleet.cluster.commits import Committer, Gathering, Outcome
from zerofleet.cluster.policy import backoff
from zerofleet.trainer.errors import StorageError, Superseded
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def run(tmp_path):
    return RunFolder(str(tmp_path), "r")


def told(run, step, rank, attempt=1):
    part = written(run, CheckpointId(step, attempt), rank)
    return Event("written", attempt, rank, step, "save", 0.0, data=part.to_dict())


def untold(step, rank, attempt=1):
    checkpoint = asdict(CheckpointId(step, attempt))
    return event("unwritten", attempt, rank, step, "save", checkpoint=checkpoint, message="disk full")


def outcomes(committer, count=1) -> list[Outcome]:
    found, deadline = [], time.monotonic() + 10
    while len(found) < count:
        assert time.monotonic() < deadline
        found += committer.outcomes()
        time.sleep(0.005)
    return found


def test_a_save_is_whole_when_every_rank_has_written(run):
    gathering = Gathering()
    assert gathering.hear(told(run, 4, 1)) is None
    assert gathering.hear(told(run, 8, 1)) is None, "two saves may be on their way"
    manifest, since = gathering.hear(told(run, 4, 0))
    assert (manifest.step, manifest.world_size, len(manifest.rank_files), since) == (4, 2, 2, 0.0)


def test_a_save_that_one_rank_could_not_write_is_given_up_once(run):
    gathering = Gathering()
    gathering.hear(told(run, 4, 0))
    assert gathering.hear(untold(4, 1)) == Outcome(CheckpointId(4, 1), False, "disk full")
    assert gathering.hear(untold(4, 0)) is None


def test_commits_are_made_in_order_by_another_thread(run):
    seen: list[tuple[int, str]] = []
    committer = Committer(lambda manifest: seen.append((manifest.step, threading.current_thread().name)))
    for step in (4, 8):
        for rank in (0, 1):
            committer.hear(told(run, step, rank))
    found = [(o.checkpoint.step, o.is_durable, o.num_bytes > 0) for o in outcomes(committer, 2)]
    assert found == [(4, True, True), (8, True, True)]
    assert seen == [(4, "committer"), (8, "committer")]
    committer.close()


def test_storage_that_is_down_is_tried_again(run, monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    tries = []

    def commit(manifest):
        tries.append(manifest.step)
        if len(tries) < 4:
            raise StorageError("down")

    committer = Committer(commit)
    for rank in (0, 1):
        committer.hear(told(run, 4, rank))
    trouble, end = outcomes(committer, 2)
    assert (trouble.is_settled, trouble.message) == (False, "down")
    assert end.is_settled and end.is_durable and tries == [4] * 4
    committer.close()


@pytest.mark.parametrize("error", [Superseded(1, 2), FileExistsError("there"), RuntimeError("unforeseen")])
def test_what_trying_again_cannot_mend_is_told(run, error):
    def commit(manifest):
        raise error

    committer = Committer(commit)
    for rank in (0, 1):
        committer.hear(told(run, 4, rank))
    (outcome,) = outcomes(committer)
    assert not outcome.is_durable and outcome.message == str(error)
    committer.close()


def test_closing_does_not_wait_for_storage(run):
    def commit(manifest):
        raise StorageError("down")

    committer = Committer(commit)
    for rank in (0, 1):
        committer.hear(told(run, 4, rank))
    started = time.monotonic()
    committer.close()
    assert time.monotonic() - started < 5


def test_nothing_is_committed_while_commits_are_paused(run):
    """Else a checkpoint that becomes durable between an attempt's choice of its start and its claim would be fenced off."""
    seen = []
    committer = Committer(lambda manifest: seen.append(manifest.step))
    with committer.paused():
        for rank in (0, 1):
            committer.hear(told(run, 4, rank))
        time.sleep(0.1)  # time enough for a commit that does not wait
        assert seen == [] and committer.outcomes() == []
    assert [outcome.is_durable for outcome in outcomes(committer)] == [True]
    committer.close()


def test_a_pause_waits_for_the_commit_that_is_under_way_and_not_for_ever(run, monkeypatch):
    monkeypatch.setattr(commits, "PAUSE_TIMEOUT_S", 0.05)
    began, go_on = threading.Event(), threading.Event()

    def commit(manifest):
        began.set()
        assert go_on.wait(10)

    committer = Committer(commit)
    for rank in (0, 1):
        committer.hear(told(run, 4, rank))
    assert began.wait(10)
    with pytest.raises(StorageError, match="a commit has been under way"), committer.paused():
        raise AssertionError("paused beside a commit")
    go_on.set()
    assert outcomes(committer)[0].is_durable
    with committer.paused():
        assert committer.outcomes() == []
    committer.close()
