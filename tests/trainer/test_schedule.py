"""Learning rates as functions of the step."""

from __future__ import annotations

import pytest

from zerofleet.trainer.config import TrainSection
from zerofleet.trainer.schedule import learning_rate


def section(**changes):
    base = {"steps": 100, "global_batch_size": 1, "micro_batch_size": 1, "learning_rate": 1.0, "warmup_steps": 10}
    return TrainSection(**{**base, "min_learning_rate_ratio": 0.1, **changes})


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_warmup_is_linear_and_reaches_the_peak(schedule):
    train = section(schedule=schedule, decay_steps=20 if schedule == "wsd" else 0)
    assert [learning_rate(train, step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(train, 10) == pytest.approx(1.0, abs=0.01)


def test_cosine_is_halfway_between_peak_and_floor_in_the_middle_and_ends_near_the_floor():
    train = section(schedule="cosine")
    assert learning_rate(train, 55) == pytest.approx(0.55)
    assert learning_rate(train, 99) == pytest.approx(0.1, abs=0.01)


def test_linear_falls_evenly():
    train = section(schedule="linear")
    falls = [learning_rate(train, s) - learning_rate(train, s + 1) for s in range(10, 99)]
    assert falls == pytest.approx([0.01] * 89)


def test_wsd_is_stable_and_then_decays_over_its_last_steps():
    train = section(schedule="wsd", decay_steps=20)
    assert [learning_rate(train, s) for s in (10, 50, 80)] == [1.0, 1.0, 1.0]
    assert learning_rate(train, 90) == pytest.approx(0.55)


def test_a_schedule_that_does_not_fit_is_refused_with_numbers():
    with pytest.raises(ValueError, match=r"warmup_steps \(90\) \+ decay_steps \(20\) exceed steps \(100\)"):
        section(schedule="wsd", warmup_steps=90, decay_steps=20)
