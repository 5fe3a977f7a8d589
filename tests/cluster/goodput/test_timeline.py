"""Every second of a run has one label."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.support.histories import BEGAN, Story
from zerofleet.cluster.goodput.timeline import LABELS, Span, spans_of
from zerofleet.trainer.events import Event


def labels(story: Story, now: float | None = None) -> dict[str, float]:
    spans = spans_of(story.history(now))
    for before, after in pairwise(spans):
        assert before.end <= after.start and before.start < before.end
    return {label: found for label in LABELS if (found := sum(s.seconds for s in spans if s.label == label))}


def unbroken() -> Story:
    return Story().driver().start().eval(3.0).steps(10).eval(2.0).finish()


def test_an_unbroken_run():
    expected = {"queue": 3.0, "prepare": 2.5, "start": 4.0, "step": 10.0, "save stall": 1.0, "eval": 5.0, "end": 2.0}
    assert labels(unbroken()) == pytest.approx(expected)


def test_waits_are_taken_from_the_step_and_the_time_before_it():
    story = Story().driver(0, 0).start(0).steps(4, 1.0, gap_s=0.5, stall_s=0.25, data_s=0.125, compile_s=0.0625)
    found = labels(story)
    # nothing lies before the first step but the start
    assert found["save stall"] == pytest.approx(1.0) and found["data wait"] == pytest.approx(0.5)
    assert found["compile"] == pytest.approx(0.25) and found["step"] == pytest.approx(4.0 + 3 * 0.5 - 1.75)


def test_waits_never_take_more_than_there_is():
    assert labels(Story().driver(0, 0).start(0).steps(1, 1.0, stall_s=0.75, data_s=5.0)) == pytest.approx(
        {"prepare": 0.5, "save stall": 0.75, "data wait": 0.25}
    )


def test_a_wait_that_is_too_long_to_be_true_does_not_reach_into_what_follows():
    story = Story().driver(0, 0).start(0).steps(1, 1.0, data_s=5.0).eval(9.0)
    assert labels(story) == pytest.approx({"prepare": 0.5, "data wait": 1.0, "eval": 9.0})


def test_a_run_that_is_resumed_after_a_stop_does_not_mend_the_failure_before_it():
    story = Story().driver().start().steps(5).kill(mend_s=0.0).start(3.0).steps(5)
    story.say("stopped", 0, "end")
    found = labels(story.state("STOPPED", 100.0).driver().start(4.0).steps(1).finish())
    assert found["restart"] == pytest.approx(3.0) and found["start"] == pytest.approx(8.0)


def test_a_kill_costs_the_repeated_steps_what_was_begun_the_notice_and_the_restart():
    story = Story().driver().start().steps(10).kill().start(3.0, from_step=7).steps(13).finish()
    found = labels(story)
    assert found["lost work"] == pytest.approx(3 + 0.25), "steps 8 to 10, and a quarter of step 11"
    assert found["detect"] == pytest.approx(0.5) and found["restart"] == pytest.approx(0.125 + 3.0)
    assert found["step"] == pytest.approx(20.0)


def test_a_silence_is_detected_from_a_step_after_the_last_word_on():
    story = Story().driver().start().steps(10)
    story.at += 6.0
    found = labels(story.fail("hang", "rank 1 gave no sign of life").start(3.0).steps(5).finish())
    assert found["lost work"] == pytest.approx(1.0) and found["detect"] == pytest.approx(5.0)


def test_a_failure_before_the_first_step_is_no_lost_work():
    story = Story().driver().start(2.0).kill(work_s=0.0).start(3.0).steps(2).finish()
    found = labels(story)
    assert found["start"] == pytest.approx(2.0) and found["detect"] == pytest.approx(0.5)
    assert found["restart"] == pytest.approx(3.125) and "lost work" not in found


def test_a_stopped_run_that_is_resumed_was_nobodys_in_between():
    story = Story().driver().start().steps(5)
    story.say("stopped", 0, "end")
    story.state("STOPPED", 1000.0).driver().start().steps(5).finish()
    found = labels(story)
    assert (
        found["queue"] == pytest.approx(6.0)
        and found["start"] == pytest.approx(8.0)
        and found["step"] == pytest.approx(10)
    )
    assert sum(found.values()) == pytest.approx(story.at - BEGAN - 1000.0)


def test_a_driver_that_died_is_noticed_by_the_next():
    story = Story().driver().start().steps(5)
    story.at += 50.0
    found = labels(story.driver().start().steps(5).finish())
    assert found["lost work"] == pytest.approx(1.0) and found["detect"] == pytest.approx(49.0)
    assert found["restart"] == pytest.approx(0.5 + 2.0 + 3.0 + 4.0)


def test_a_node_that_is_replaced_and_a_resize_are_restarts():
    story = Story().driver().start().steps(5).kill(mend_s=0.0).state("PLACING", 20.0).start(4.0).steps(5)
    story.state("RESIZING", 0.5)
    story.say("stopped", 0, "end")
    found = labels(story.state("PLACING", 6.0).start(4.0).steps(1).finish())
    assert found["restart"] == pytest.approx(24.0 + 10.0) and found["queue"] == pytest.approx(3.0)


def test_an_op_that_is_built_is_compiling():
    story = Story().driver(prepare_s=1.0, queue_s=0.0)
    story.events.append(
        Event("prepare", 1, -1, 0, "init", BEGAN + 0.75, data={"stage": "build cpu_adam", "fraction": 0.5})
    )
    assert labels(story.start(1.0).steps(1))["compile"] == pytest.approx(0.75)


def test_torchrun_has_no_states():
    story = Story().start(2.0).steps(5)
    story.events = [event for event in story.events if event.kind != "state"]
    story.say("phase", 0, "save")
    story.at += 1.0
    story.say("phase", 0, "end")
    story.say("finished", 0, "end")
    assert labels(story) == pytest.approx({"start": 2.0, "step": 5.0, "save stall": 1.0})


def test_a_run_that_goes_on_is_counted_until_now():
    story = Story().driver().start().steps(5)
    found = labels(story, now=story.at + 0.5)
    assert found["step"] == pytest.approx(5.5) and "lost work" not in found and "detect" not in found


def test_neighbours_of_one_label_are_one_span():
    assert [span.label for span in spans_of(Story().driver().start().steps(100).history())] == [
        "prepare", "queue", "start", "step",
    ]  # fmt: skip


def test_events_without_a_run_and_a_run_without_events():
    assert spans_of(Story().history()) == []
    history = replace(unbroken().history(now=BEGAN + 5.0), attempts=(), events=(), results=())
    assert spans_of(history) == [Span(BEGAN, BEGAN + 5.0, "prepare", 1)], "a driver that said nothing yet"
