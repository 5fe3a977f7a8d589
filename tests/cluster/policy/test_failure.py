"""The failure policy, as pure as it is."""

from __future__ import annotations

import pytest

from zerofleet.cluster.policy.failure import Failure, decide, made_progress
from zerofleet.cluster.verdict import Verdict


def failure(step=5, checkpoint_step=0, frames=(), kind="node", **fields) -> Failure:
    return Failure(Verdict(kind, "it failed", frames=frames, **fields), step, checkpoint_step)


BUG = ("loop.py:1 train", "model.py:9 forward")


def test_a_first_failure_is_tried_again():
    assert decide([failure(frames=BUG)], 3).action == "retry"


def test_no_failure_is_allowed_with_a_budget_of_zero():
    assert decide([failure()], 0).action == "stop"


def test_a_user_error_is_not_tried_again():
    decision = decide([failure(user_error="sequence too long")], 3)
    assert decision.action == "stop"
    assert "mend" in decision.reason


def test_the_same_traceback_twice_in_a_row():
    decision = decide([failure(frames=BUG), failure(frames=BUG)], 100)
    assert decision.action == "stop"
    assert "same traceback" in decision.reason
    assert "step 5" in decision.reason


@pytest.mark.parametrize("progress", [{"step": 6}, {"checkpoint_step": 5}])
def test_the_same_traceback_after_progress(progress):
    assert decide([failure(frames=BUG), failure(frames=BUG, **progress)], 100).action == "retry"


def test_another_traceback():
    assert decide([failure(frames=BUG), failure(frames=BUG[:1])], 100).action == "retry"


def test_deaths_without_a_traceback_are_only_counted():
    failures = [failure() for _ in range(3)]
    assert decide(failures, 3).action == "retry"
    decision = decide([*failures, failure()], 3)
    assert decision.action == "stop"
    assert "4 failures in a row" in decision.reason


def test_progress_starts_the_count_anew():
    failures = [failure(step=step) for step in (5, 5, 5, 6, 6, 6)]
    assert decide(failures, 3).action == "retry"
    assert decide([*failures, failure(step=6)], 3).action == "stop"


def test_going_back_is_no_progress():
    assert not made_progress(failure(step=9, checkpoint_step=5), failure(step=6, checkpoint_step=5))


def unusable(step: int, **fields) -> Failure:
    """The attempt could not read what it was to start from."""
    return failure(step=step, checkpoint_step=step, checkpoint=(step, 1), frames=BUG, **fields)


def test_an_unusable_checkpoint_is_never_charged():
    walked_back = [unusable(step) for step in (30, 20, 10)]
    assert decide(walked_back, 0).action == "retry"
    assert decide([failure(), *walked_back, failure()], 2).action == "retry"


def test_a_step_is_left_out_in_memory_and_in_storage_but_not_for_ever():
    assert decide([unusable(30), unusable(30)], 0).action == "retry", "the snapshot, then the checkpoint"
    decision = decide([unusable(30), unusable(30), unusable(20), unusable(30)], 100)
    assert decision.action == "stop"
    assert "step 30 (attempt 1) was found unusable 3 times" in decision.reason and "resume" in decision.reason


def test_an_unusable_checkpoint_that_is_not_the_runs_own_stops_at_once():
    """It is the source of init_from: the run has none before it, so another attempt would read the same."""
    source = failure(step=0, checkpoint_step=0, checkpoint=(718, 1), frames=BUG, kind="storage")
    decision = decide([source], 100)
    assert decision.action == "stop"
    assert "restore its files" in decision.reason and "run.init_from=RUN@STEP" in decision.reason


def test_a_non_finite_step_is_replayed_once():
    assert decide([failure(non_finite_step=7, frames=BUG)], 3).action == "retry"
    decision = decide([failure(non_finite_step=7, frames=BUG), failure(non_finite_step=7, frames=BUG)], 3)
    assert decision.action == "stop"
    assert "step 7" in decision.reason
    assert "train.learning_rate" in decision.reason


def test_a_non_finite_step_that_recurs_stops_even_after_a_new_checkpoint():
    """The checkpoint may lie between: what counts is that the step failed again."""
    decision = decide([failure(non_finite_step=7), failure(non_finite_step=7, checkpoint_step=6)], 3)
    assert decision.action == "stop"


def test_another_non_finite_step_is_tried_again():
    assert decide([failure(non_finite_step=7, step=6), failure(non_finite_step=9, step=8)], 3).action == "retry"
