"""The accounts: labels per run, attempt and rank, and goodput."""

from __future__ import annotations

import json

import pytest

from tests.support.histories import BEGAN, Story
from zerofleet.cluster.goodput.history import median_step_s
from zerofleet.cluster.goodput.ledger import Ledger


def killed() -> Story:
    return Story().driver().start().steps(10).kill().start(3.0, from_step=7).steps(13).finish()


def test_the_labels_sum_to_the_wall_time_of_the_run_and_of_every_rank():
    story = killed()
    ledger = Ledger.of(story.history())
    assert ledger.wall_s == pytest.approx(story.at - BEGAN)
    assert sum(ledger.labels.values()) == pytest.approx(ledger.wall_s)
    assert sum(sum(seconds.values()) for seconds in ledger.attempts.values()) == pytest.approx(ledger.wall_s)
    for (attempt, _), seconds in ledger.ranks.items():
        assert sum(seconds.values()) == pytest.approx(sum(ledger.attempts[attempt].values()))
    assert sorted(ledger.ranks) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_goodput_counts_each_step_once_at_the_median():
    ledger = Ledger.of(killed().history())
    assert len(ledger.history.counted) == 20 and [step.step for step in ledger.history.lost] == [8, 9, 10]
    assert ledger.goodput() == pytest.approx(20 * 1.0 / ledger.wall_s)
    assert ledger.goodput(0.5) == pytest.approx(20 * 0.5 / ledger.wall_s), "the unbroken run's median"


def test_lost_work_is_the_steps_repeated_and_what_was_cut():
    ledger = Ledger.of(killed().history())
    assert ledger.repeated_s == pytest.approx(3.0) and ledger.labels["lost work"] == pytest.approx(3.25)


def test_a_step_of_two_attempts_back_is_fenced_off_by_the_earliest_start():
    story = Story().driver().start().steps(10).kill().start(from_step=8).steps(1).kill().start(from_step=4).steps(8)
    history = story.finish().history()
    assert [(step.attempt, step.step) for step in history.lost] == [(1, n) for n in range(5, 11)] + [(2, 9)]
    assert sorted(history.counted) == list(range(1, 13))


def test_a_ranks_own_waits_are_taken_from_its_steps():
    story = Story().driver().start().steps(10, data_s=0.1, stall_s=0.2)
    story.ranks(own_s=[0.5, 0.6], data_s=[0.1, 0.4], stall_s=[0.2, 0.1], steps=10)
    ledger = Ledger.of(story.finish(save_s=0.0).history())
    zero, one = ledger.ranks[1, 0], ledger.ranks[1, 1]
    assert (zero["data wait"], zero["save stall"], zero["step"]) == pytest.approx((1.0, 2.0, 7.0))
    assert (one["data wait"], one["save stall"], one["step"]) == pytest.approx((4.0, 1.0, 5.0))


def test_a_run_that_nobody_has_started_has_no_goodput():
    ledger = Ledger.of(Story().history())
    assert (ledger.wall_s, ledger.goodput(), sum(ledger.labels.values())) == (0.0, 0.0, 0.0)


def test_the_dictionary_is_json():
    fields = json.loads(json.dumps(Ledger.of(killed().history()).to_dict()))
    assert fields["repeated_steps"] == 3 and fields["labels"]["restart"] == pytest.approx(3.125)
    assert set(fields["ranks"]) == {"1/0", "1/1", "2/0", "2/1"}


def test_the_median_is_from_end_to_end_within_an_attempt():
    steps = Story().driver().start().steps(5, 1.0, gap_s=0.5).kill().start(30.0).steps(2, 1.0, gap_s=0.5).results
    assert median_step_s(steps) == pytest.approx(1.5)
    assert median_step_s([steps[0], steps[1], steps[4]]) == pytest.approx(1.5), "steps 3 and 4 were not recorded"
    assert median_step_s(steps[:1]) == pytest.approx(1.0) and median_step_s([]) == 0.0
