"""The failure policy, as pure as it is."""

from __future__ import annotations

import pytest

from zerofleet.cluster.policy.failure import Failure, Terms, decide, made_progress
from zerofleet.cluster.verdict import BadStep, Verdict


def failure(step=5, checkpoint_step=0, frames=(), kind="node", num_left_out=0, **fields) -> Failure:
    terms = Terms(((0, num_left_out),) if num_left_out else ())
    return Failure(Verdict(kind, "it failed", frames=frames, **fields), step, checkpoint_step, terms)


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
    assert not made_progress([failure(step=9, checkpoint_step=5), failure(step=6, checkpoint_step=5)])


def test_ending_a_little_later_by_chance_is_no_progress():
    """All begin at step 50: an attempt that came further than the one before, and not further than any, has got nowhere."""
    steps = [93, 88, 95, 90, 94, 91]
    failures = [failure(step=step, checkpoint_step=50) for step in steps]
    assert [decide(failures[:count], 3).action for count in range(1, 7)] == ["retry"] * 5 + ["stop"]


def test_a_walk_back_has_a_measure_of_its_own():
    """What was reached from a checkpoint that turned out to be bad does not count against the one before it."""
    failures = [
        failure(step=95, checkpoint_step=90),
        failure(step=60, checkpoint_step=50),
        failure(step=70, checkpoint_step=50),
    ]
    assert made_progress(failures)


def test_a_node_whose_device_is_suspect_is_done_without():
    assert decide([failure(suspects=("b",), node="b")], 3).without == ("b",)
    assert decide([failure(node="b")], 3).without == ()


@pytest.mark.parametrize(
    ("second", "without"),
    [
        ({"node": "b"}, ("b",)),
        ({"node": "b", "kind": "hang"}, ("b",)),
        ({"node": "c"}, ()),
        ({"node": "b", "kind": "host OOM"}, ()),
        ({"node": "b", "step": 6}, ()),
    ],
)
def test_a_node_that_fails_twice_in_a_row_without_progress_is_done_without(second, without):
    assert decide([failure(node="b"), failure(**second)], 3).without == without


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


NAN = BadStep(7, ((48, 56),))
SPIKE = BadStep(7, ((48, 56),), 9.5)


def bad(what=NAN, **fields) -> Failure:
    return failure(**{"step": what.step - 1, "bad_step": what, "frames": BUG, "kind": "data"} | fields)


def test_a_bad_step_is_replayed_once_and_then_its_samples_are_left_out():
    assert decide([bad()], 3, 2).action == "retry"
    decision = decide([bad(), bad()], 3, 2)
    assert (decision.action, decision.quarantine) == ("quarantine", ((48, 56),))
    assert "step 7 gave a non-finite gradient twice" in decision.reason and "positions 48 to 55" in decision.reason
    assert "1 of at most cluster.max_quarantined_steps=2" in decision.reason
    assert "loss spike of 9.5 twice" in decide([bad(SPIKE), bad(SPIKE)], 3, 2).reason


@pytest.mark.parametrize(("allowed", "left_out"), [(0, 0), (2, 16)])
def test_a_bad_step_that_recurs_stops_when_no_more_may_be_left_out(allowed, left_out):
    decision = decide([bad(), bad(num_left_out=left_out)], 3, allowed)
    assert (decision.action, decision.quarantine) == ("stop", ())
    assert "train.learning_rate" in decision.reason and f"max_quarantined_steps={allowed}" in decision.reason
    assert ("of 2 steps are left out already" in decision.reason) is bool(left_out)


def test_a_bad_step_recurs_even_after_a_new_checkpoint_or_another_failure():
    """What counts is that the step failed again with the same samples."""
    assert decide([bad(), bad(checkpoint_step=6)], 3, 1).action == "quarantine"
    assert decide([bad(), failure(step=3), bad()], 3, 1).action == "quarantine"


def test_a_step_that_was_passed_meanwhile_is_replayed_again():
    assert decide([bad(), failure(step=9), bad()], 3, 1).action == "retry"


def test_another_step_or_other_samples_are_tried_first():
    assert decide([bad(), bad(BadStep(9, ((64, 72),)))], 3, 1).action == "retry"
    next_ones = BadStep(7, ((56, 64),))
    assert decide([bad(), bad(), bad(next_ones, num_left_out=8)], 3, 2).action == "retry"


def test_a_quarantine_is_progress():
    """Else two bad steps in a row would use up the failures that a run is allowed, or be taken for the same bug."""
    failures = [bad(BadStep(7, ((48 + 8 * n, 56 + 8 * n),)), num_left_out=8 * n) for n in range(4) for _ in range(2)]
    assert [decide(failures[: n + 1], 2, 4).action for n in range(8)] == ["retry", "quarantine"] * 4


@pytest.mark.parametrize("second", [NAN, BadStep(7, ((48, 56),), 9.25)])
def test_a_spike_that_recurs_otherwise_proves_nothing_against_the_data(second):
    decision = decide([bad(SPIKE), bad(second)], 3, 2)
    assert decision.action == "stop"
    assert "not bitwise" in decision.reason and "train.deterministic" in decision.reason


# -- memory that runs out ------------------------------------------------------------------------------------------
def out_of_memory(size, least=1, kind="host OOM", had_state=True, frames=BUG) -> Failure:
    verdict = Verdict(kind, "it ran out of memory", frames=frames, had_state=had_state)
    return Failure(verdict, 5, 0, Terms((), size, least))


@pytest.mark.parametrize("kind", ["host OOM", "device OOM"])
@pytest.mark.parametrize(("size", "least", "half"), [(8, 1, 4), (3, 1, 1), (2, 1, 1), (6, 4, 4)])
def test_a_micro_batch_that_does_not_fit_is_halved(kind, size, least, half):
    decision = decide([out_of_memory(size, least, kind)], 3)
    assert (decision.action, decision.micro_batch_size) == ("halve", half)
    assert f"micro-batches of {size} sequences do not fit; from here on they are of {half}" in decision.reason
    assert f"train.min_micro_batch_size={least}" in decision.reason
    assert Terms([[3, 4]], size, least).after(decision) == Terms([[3, 4]], half, least)


def test_halving_does_not_use_up_the_failures_and_ends_where_the_recipe_says():
    failures = [out_of_memory(size, 2) for size in (16, 8, 4)]
    assert [decide(failures[: n + 1], 0).action for n in range(3)] == ["halve"] * 3
    at_the_end = [*failures, out_of_memory(2, 2)]
    assert decide(at_the_end, 3).action == "retry", "the first failure of the smallest one"
    assert decide([*at_the_end, out_of_memory(2, 2)], 3).action == "stop", "the same again"


@pytest.mark.parametrize(
    "failed",
    [out_of_memory(8, 0), out_of_memory(8, 8), out_of_memory(8, had_state=False), out_of_memory(8, kind="node")],
    ids=["not allowed", "the smallest", "while the model was built", "another failure"],
)
def test_what_halving_cannot_mend_or_may_not_is_tried_again(failed):
    decision = decide([failed], 3)
    assert decision.action == "retry" and failed.terms.after(decision).micro_batch_size == 8


def test_a_bad_step_that_is_played_again_with_other_micro_batches_proves_nothing_against_the_replay():
    """Sums of another order differ in their last bits."""

    def spike(loss, size) -> Failure:
        return Failure(Verdict("data", "a spike", bad_step=BadStep(7, ((48, 56),), loss)), 5, 0, Terms((), size, 1))

    assert decide([spike(9.5, 4), out_of_memory(4), spike(9.25, 2)], 3, 1).action == "retry"
    assert decide([spike(9.5, 4), spike(9.25, 4)], 3, 1).action == "stop"
