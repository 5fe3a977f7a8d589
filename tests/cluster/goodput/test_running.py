"""The running ledger says what the whole history's would, whatever it has forgotten meanwhile."""

from __future__ import annotations

import pytest

from tests.support.histories import BEGAN, Story
from zerofleet.cluster.goodput.history import end_of
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.cluster.goodput.running import RunningLedger
from zerofleet.cluster.goodput.timeline import LABELS
from zerofleet.trainer.events import Event


def fed(story: Story, window: int) -> RunningLedger:
    """Everything in the order in which a driver would hear it, each attempt when it is claimed."""
    ledger = RunningLedger(window)
    told = [(driver.started_at, 0, driver) for driver in story.drivers]
    told += [(attempt.claimed_at, 1, attempt) for attempt in story.attempts]
    told += [(end_of(event), 2, event) for event in (*story.events, *story.results)]
    for _, order, what in sorted(told, key=lambda item: item[:2]):
        (ledger.add_driver, ledger.add_attempt, ledger.hear)[order](what)
    return ledger


def going_on() -> Story:
    return Story().driver().start().eval(2.0).steps(40, data_s=0.125, stall_s=0.0625, gap_s=0.25)


def killed() -> Story:
    return going_on().kill().start(3.0, from_step=37).steps(30, compile_s=0.25).eval(1.0).steps(3)


def resumed() -> Story:
    story = killed().finish()
    story.at += 100.0
    return story.driver().start(2.0).steps(20)


def hung() -> Story:
    story = Story().driver().start().steps(30)
    story.at += 6.0
    return story.fail("hang", "rank 1 gave no sign of life").start(3.0, from_step=28).steps(25)


@pytest.mark.parametrize("window", [8, 1000])
@pytest.mark.parametrize("make", [going_on, killed, resumed, hung, lambda: killed().finish()])
def test_the_seconds_are_the_ledgers(make, window):
    story = make()
    now = story.at + 0.5
    accounts, ledger = fed(story, window).accounts(now), Ledger.of(story.history(now))
    assert accounts.seconds == pytest.approx(ledger.labels)
    assert sum(accounts.seconds.values()) == pytest.approx(ledger.wall_s)
    assert accounts.counted_steps == len(ledger.history.counted)


def test_it_keeps_a_bounded_number_of_results():
    story = Story().driver().start().steps(500)
    ledger = fed(story, 8)
    assert len(ledger._results) <= 17 and len(ledger._events) < 10
    assert ledger.accounts(story.at).seconds["step"] == pytest.approx(500.0)
    assert ledger.accounts(story.at).goodput == pytest.approx(500 / (story.at - BEGAN))


def test_a_run_that_goes_back_behind_what_is_summed_up_loses_in_proportion():
    story = Story().driver().start().steps(100).kill().start(3.0, from_step=20).steps(5)
    accounts, ledger = fed(story, 8).accounts(story.at), Ledger.of(story.history(story.at))
    assert accounts.counted_steps == 25 == len(ledger.history.counted)
    assert accounts.seconds["step"] == pytest.approx(ledger.labels["step"]) == pytest.approx(25.0)
    assert accounts.seconds["lost work"] == pytest.approx(ledger.labels["lost work"])
    assert sum(accounts.seconds.values()) == pytest.approx(ledger.wall_s)


def test_results_that_only_a_file_or_a_snapshot_has_told_count_once():
    story = Story().driver().start().steps(10)
    ledger = RunningLedger()
    ledger.add_driver(story.drivers[0])
    ledger.add_attempt(story.attempts[0])
    heard, told = story.results[:6], [vars(result) for result in story.results[4:]]
    for event in (*story.events, *heard):
        ledger.hear(event)
    ledger.hear(Event("written", 1, 0, 10, "save", story.at, data={"results": told[:4]}))
    ledger.hear(Event("recalled", 2, 0, 10, "load", story.at, data={"events": told}))
    accounts = ledger.accounts(story.at)
    assert accounts.counted_steps == 10 and accounts.seconds["step"] == pytest.approx(10.0)
    assert len(ledger._results) == 10, "what was told again takes nobody's place"


def test_every_label_is_there_before_anything_has_happened():
    accounts = RunningLedger().accounts(BEGAN)
    assert accounts.seconds == dict.fromkeys(LABELS, 0.0) and accounts.goodput == 0.0
