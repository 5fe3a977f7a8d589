"""Goodput as a reading of a record; who strikes finds nobody and waits."""

from __future__ import annotations

import pytest

from tests.support.histories import Story
from zerofleet.benchmarks.goodput import Hit, Striker, by_kind, shares_of
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.chaos.record import Record
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import AttemptRecord, RunFolder


def step(number: int, attempt: int, ended: float) -> Event:
    return Event("step", attempt, 0, number, "step", ended - 1.0, 1.0, {"loss": 1.0})


def say(kind: str, at: float, **data) -> Event:
    return Event(kind, 1, DRIVER, 0, "running", at, data=data)


def record() -> Record:
    """Steps of a second; a kill at 102.5 costs half a step and three seconds, and step 2 is done again."""
    steps = (step(1, 1, 101.0), step(2, 1, 102.0), step(2, 2, 106.0), step(3, 2, 107.0), step(4, 2, 108.0))
    events = (say("state", 90.0, to="PREPARING"), say("exit", 102.6, killed=False, code=None, signal=9))
    attempts = tuple(AttemptRecord(n, n - 1, None, 2, 1, 0.0, "here", 1) for n in (1, 2))
    return Record(attempts, (*events, say("state", 110.0, to="FINISHED")), steps, (), 4)


def test_a_step_that_is_done_twice_counts_once():
    story = (
        Story().driver(prepare_s=1.5, queue_s=0.0).start(2.0).steps(2, 1.0).kill(work_s=0.5, notice_s=0.5, mend_s=0.0)
    )
    shares = shares_of(
        Ledger.of(story.start(2.0, from_step=1).steps(3, 1.0).finish(save_s=0.5, end_s=0.5).history()), 1.0
    )
    assert shares["goodput_of_training"] == pytest.approx(4.0 / 8.0)
    assert shares["goodput"] == pytest.approx(4.0 / 13.0)
    assert sum(shares["labels"].values()) == pytest.approx(shares["whole_run_s"]) == pytest.approx(13.0)


def test_the_cost_of_each_kind():
    table = by_kind([Hit("kill", 0, 1, 102.5)], record())
    assert list(table) == ["kill"] and table["kill"]["repeated_steps"] == [1]
    assert table["kill"]["median_detected_s"] == pytest.approx(0.1)
    assert table["kill"]["median_restored_s"] == pytest.approx(4.5)


def test_where_there_is_nobody_nothing_is_struck(tmp_path):
    run = RunFolder(str(tmp_path), "a")
    run.claim_attempt(1, None, 2, 1)
    run.storage.create("drivers/0001.json", b'{"host":"h","pid":1,"pid_created":0,"started_at":0,"overrides":[]}')
    assert Striker(run, ["kill"], 60.0, seed=0)._strike("kill") is None
