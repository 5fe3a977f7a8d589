"""A run's events out of its driver's log."""

from __future__ import annotations

import time

import pytest

from zerofleet.k8s.api import ApiError
from zerofleet.launch.backends.pod_events import PodEvents, parse_event
from zerofleet.trainer.events import DRIVER, Event

pytestmark = pytest.mark.timeout(20)


def event(step: int) -> Event:
    return Event("step", 1, 0, step, "step", 100.0 + step, data={"loss": 1.0})


class FakeApi:
    """Pods that have ended, and their logs. Raises the `troubles` of reads first."""

    def __init__(self, logs: dict[str, list[str]], *troubles: Exception) -> None:
        self.logs, self.troubles = logs, list(troubles)

    def get(self, path, query=None):
        return {"status": {"phase": "Succeeded"}}

    def lines(self, path, query, silence_s):
        if self.troubles:
            raise self.troubles.pop(0)
        for number, line in enumerate(self.logs[path.split("/")[-2]]):
            yield f"2026-11-22T10:00:{number:02d}Z {line}".encode()


def taken(events: PodEvents, count: int) -> list[Event]:
    found, deadline = [], time.monotonic() + 10
    while len(found) < count and time.monotonic() < deadline:
        found += events.take()
        time.sleep(0.005)
    events.wait_for_end(5)
    return found + events.take()


def test_lines_that_are_no_events_are_kept_for_the_end():
    assert parse_event(event(1).to_json()) == event(1)
    assert parse_event("Job submission server address: http://a") is None
    assert parse_event('{"kind":"step","half') is None and parse_event('{"kind":"step","new":1}') is None


def test_another_submitters_pod_repeats_the_log_and_nothing_comes_twice():
    nan = Event("step", 1, DRIVER, 3, "step", 103.0, data={"loss": float("nan")})
    first = [f"line {number}" for number in range(30)] + [event(1).to_json(), event(2).to_json()]
    events = PodEvents(FakeApi({"a": first, "b": [*first, nan.to_json(), "error: it is so"]}), "training")
    events.follow("")
    events.follow("a")
    assert [each.step for each in taken(events, 2)] == [1, 2]
    events.follow("a")
    events.follow("b")
    assert [each.step for each in taken(events, 1)] == [3]
    tail = events.tail.splitlines()
    assert tail[-1] == "error: it is so" and len(tail) == 20


def test_what_could_not_be_followed_is_read_again_once():
    log = ["Traceback", event(1).to_json(), event(2).to_json(), "the end"]
    forbidden = ApiError(403, "Forbidden", "no pods/log")
    events = PodEvents(FakeApi({"a": log}, forbidden, ApiError(0, "ConnectionLost", "")), "training")
    events.read_again(5)
    assert events.take() == []  # of no pod yet
    events.follow("a")
    events.wait_for_end(5)
    assert "no pods/log" in events.tail and events.take() == []
    events.read_again(5)
    assert [each.step for each in events.take()] == [1, 2] and events.tail == "Traceback\nthe end"
    events.read_again(5)
    assert events.take() == [] and events.tail == "Traceback\nthe end"
