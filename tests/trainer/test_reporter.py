"""What rank 0 remembers for whoever comes after."""

from __future__ import annotations

from dataclasses import asdict

from zerofleet.trainer.events import Event
from zerofleet.trainer.reporter import RECENT_EVENTS, Reporter, no_fault
from zerofleet.trainer.world import World


def reporter(attempt: int) -> tuple[Reporter, list[Event]]:
    heard: list[Event] = []
    return Reporter(World(0, 0, 0, 1, "n", attempt), heard.append, no_fault), heard


def test_what_nobody_may_have_heard_is_remembered_over_attempts():
    """Attempt 1 ends untold, nobody listens to attempt 2 either, and attempt 3 starts from a snapshot of attempt 2."""
    first, _ = reporter(1)
    first.step = 1
    first.hold("step", "step", 0.0, 1.0, loss=2.0)
    second, heard = reporter(2)
    second.remember([asdict(event) for event in first.recent])
    second.step = 2
    second.hold("step", "step", 1.0, 1.0, loss=1.0)
    assert [event.kind for event in heard] == ["recalled"]
    assert [(event.attempt, event.step) for event in second.recent] == [(1, 1), (2, 2)]


def test_the_newest_are_remembered():
    told, _ = reporter(1)
    for step in range(2 * RECENT_EVENTS):
        told.step = step
        told.hold("step", "step", 0.0, 1.0)
    assert next(event.step for event in told.recent) == RECENT_EVENTS
