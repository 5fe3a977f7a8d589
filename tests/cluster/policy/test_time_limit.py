"""Hours that a run has had, and the moment when they are over."""

import pytest

from zerofleet.cluster.policy.time_limit import HOUR_S, TimeLimit, driven_s
from zerofleet.trainer.events import DRIVER, Event


def said(at: float, duration_s: float = 0.0) -> Event:
    return Event("heartbeat", 1, DRIVER, 0, "running", at, duration_s)


def test_what_nobody_drove_is_not_counted():
    events = [said(110), said(140), said(100, duration_s=50), said(1010), said(1001)]
    assert driven_s([100.0, 1000.0], events) == 50 + 10
    assert driven_s([], events) == 0
    assert driven_s([2000.0], events) == 0, "what was said before a driver began is not its own"


def test_of_overlapping_words_the_one_who_began_last_has_the_time():
    assert driven_s([0.0, 100.0], [said(99), said(100), said(130)]) == 99 + 30


def test_the_time_of_all_drivers_counts_and_it_is_said_once():
    limit = TimeLimit(2.0, before_s=HOUR_S, started_at=5000.0)
    assert limit.look(5000 + HOUR_S - 1, 5, 10) == ""
    sentence = limit.look(5000 + HOUR_S, 5, 10)
    assert "has had 2 h" in sentence and "cluster.max_hours is 2:" in sentence
    assert limit.look(5000 + 2 * HOUR_S, 6, 10) == ""


@pytest.mark.parametrize(("max_hours", "step"), [(0.0, 5), (1.0, 10)])
def test_without_a_limit_or_after_the_last_step_nothing_is_over(max_hours, step):
    assert TimeLimit(max_hours, 0.0, 0.0).look(100 * HOUR_S, step, 10) == ""


def test_what_it_may_cost_is_reckoned_with_the_price_of_all_nodes():
    limit = TimeLimit(0.0, before_s=HOUR_S, started_at=5000.0, max_cost=150.0, price_per_hour=60.0)
    assert limit.look(5000 + 1.4 * HOUR_S, 5, 10) == ""
    sentence = limit.look(5000 + 1.5 * HOUR_S, 5, 10)
    assert "for 2.5 h at 60 an hour together, which is 150, and cluster.max_cost is 150:" in sentence
    assert sentence.endswith("Resume it with a larger cluster.max_cost")


def test_the_limit_that_is_reached_first_is_told():
    both = {"max_cost": 100.0, "price_per_hour": 10.0}
    assert "cluster.max_hours is 5" in TimeLimit(5.0, 0.0, 0.0, **both).look(6 * HOUR_S, 1, 2)
    assert "cluster.max_cost is 100" in TimeLimit(50.0, 0.0, 0.0, **both).look(10 * HOUR_S, 1, 2)
