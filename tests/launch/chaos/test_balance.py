"""Accounts that add up, and accounts that were made not to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.histories import Story
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.cluster.goodput.timeline import Span
from zerofleet.launch.chaos.balance import _problems, balance
from zerofleet.trainer.run_folder import RunFolder


def broken() -> Story:
    """A rank is killed after step 12, and the run goes on from step 10."""
    story = Story().driver().start().eval(1.0).steps(12).kill().start(from_step=10).steps(5)
    return story.ranks([0.5, 0.6], [0.1, 0.1], [0.0, 0.1], steps=5).finish()


def problems(change) -> list[str]:
    history = broken().history()
    ledger = Ledger.of(history)
    return list(_problems(replace(ledger, spans=tuple(change(list(ledger.spans)))), history))


def test_a_whole_ledger_adds_up():
    assert problems(lambda spans: spans) == []


def test_after_a_resume_the_time_in_which_nobody_had_the_run_is_no_part():
    story = broken()
    story.at += 1000.0
    history = story.driver().start().steps(3).finish().history()
    assert list(_problems(Ledger.of(history), history)) == []


def test_a_driver_that_died_leaves_no_pause():
    story = Story().driver().start().steps(5).finish()
    story.at += 1000.0
    story.driver().start().steps(5)  # and is killed
    story.at += 50.0
    history = story.driver().start().steps(3).finish().history()
    assert list(_problems(Ledger.of(history), history)) == []


def test_a_second_without_a_label_is_told():
    found = problems(lambda spans: spans[:3] + spans[4:])
    assert found and all("do not add up" in problem for problem in found) and "all labels are" in found[0]


def test_time_that_is_counted_twice_is_told():
    assert "all labels are" in problems(lambda spans: [*spans, spans[0]])[0]


def test_lost_work_that_is_told_as_work_is_told():
    def hide(spans: list[Span]) -> list[Span]:
        return [replace(span, label="step") if span.label == "lost work" else span for span in spans]

    (found,) = problems(hide)
    assert "2.000 s were repeated, and lost work is 0.000 s" in found


def test_a_run_that_no_driver_had_has_no_accounts(tmp_path):
    run = RunFolder(str(tmp_path), "a")
    run.create("{}")
    assert balance(run) == []


@pytest.mark.parametrize("field", ["all attempts", "rank"])
def test_each_sum_is_looked_at(field, monkeypatch):
    history = broken().history()
    ledger = Ledger.of(history)
    if field == "rank":
        ledger.__dict__["ranks"] = {(1, 0): {"step": 1.0}}
    else:
        ledger.__dict__["attempts"] = {1: {"step": 1.0}}
        ledger.__dict__["ranks"] = {}
    (found,) = _problems(ledger, history)
    assert field in found
