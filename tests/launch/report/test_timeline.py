"""Slots of the time axis hold what their time went to."""

from __future__ import annotations

import pytest

from tests.support.histories import Story
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.explanation import happenings_of
from zerofleet.launch.report.timeline import MOST_ROWS, SLOTS, slots_of, timeline


def test_the_slots_hold_all_of_the_time():
    ledger = Ledger.of(
        Story().driver().start().steps(500, 0.01, gap_s=0.01, data_s=0.005).kill().start().steps(9).finish().history()
    )
    slots = slots_of(ledger.spans, ledger.history.began_at, ledger.wall_s)
    assert sorted(slots) == list(range(SLOTS))
    for label, seconds in ledger.labels.items():
        assert sum(slot.get(label, 0.0) for slot in slots.values()) == pytest.approx(seconds, abs=1e-6)
    assert all(sum(slot.values()) == pytest.approx(ledger.wall_s / SLOTS) for slot in slots.values())


def test_a_row_per_attempt_with_its_incidents():
    story = Story().driver().start().steps(10).kill().start().steps(10).finish()
    ledger = Ledger.of(story.history())
    drawing = timeline(ledger, happenings_of(ledger))
    assert drawing.count("<div class=row>") == 2 and drawing.count("<i style=") == 1
    first, second = drawing.split("<div class=row>")[1:]
    assert ">1</i>" in first, "numbered as in the list of what happened"
    assert "l-lost-work" in first and "<i " in first and "l-restart" in second and "<i " not in second


def test_very_many_attempts_share_a_row():
    story = Story().driver().start()
    for _ in range(MOST_ROWS + 1):
        story.steps(1).kill().start()
    ledger = Ledger.of(story.finish().history())
    assert timeline(ledger, ()).count("<div class=row>") == 1


def test_a_run_without_time_has_no_timeline():
    assert timeline(Ledger.of(Story().history()), ()) == ""
