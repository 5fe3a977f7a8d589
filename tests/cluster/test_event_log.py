"""Events are written in order, by a writer per attempt, whatever storage does."""

from __future__ import annotations

import threading
import time

import pytest

from tests.cluster.fakes import event
from zerofleet.cluster import event_log
from zerofleet.cluster.event_log import EventLog
from zerofleet.cluster.policy.backoff import Backoff
from zerofleet.trainer.errors import StorageError


class Writer:
    def __init__(self, attempt: int, broken: bool = False) -> None:
        self.attempt, self.broken = attempt, broken
        self.steps: list[int] = []
        self.is_closed = False

    def on_event(self, event) -> None:
        if self.broken:
            raise StorageError("the disk is full")
        self.steps.append(event.step)

    def make_ledger_durable(self) -> None:
        if self.broken:
            raise StorageError("the disk is full")
        self.durable_step = max(self.steps)

    def close(self) -> None:
        self.is_closed = True


def opener(writers: list[Writer], **fields):
    def open_writer(attempt: int) -> Writer:
        writers.append(Writer(attempt, **fields))
        return writers[-1]

    return open_writer


def test_a_writer_per_attempt():
    writers: list[Writer] = []
    log = EventLog(opener(writers))
    for attempt, step in [(1, 1), (1, 2), (2, 2), (1, 3), (2, 4)]:
        log.emit(event("step", attempt, 0, step))
    log.close()
    assert [(w.attempt, w.steps, w.is_closed) for w in writers] == [(1, [1, 2], True), (2, [2, 3, 4], True)]


def test_nobody_waits_for_a_slow_writer():
    gate = threading.Event()

    class Slow(Writer):
        def on_event(self, event) -> None:
            gate.wait(10)
            super().on_event(event)

    slow = Slow(1)
    log = EventLog(lambda attempt: slow)
    for step in range(100):
        log.emit(event("step", 1, 0, step))
    assert slow.steps == []
    gate.set()
    log.close()
    assert slow.steps == list(range(100))


def test_storage_that_fails_ends_nothing(caplog):
    writers: list[Writer] = []
    log = EventLog(opener(writers, broken=True))
    log.emit(event("step", 1, 0, 1))
    log.emit(event("step", 1, 0, 2))
    log.close()
    assert "the disk is full" in caplog.text
    assert writers[0].is_closed


def test_any_exception_of_a_writer_leaves_the_final_state_to_be_written(caplog):
    class Odd(Writer):
        def on_event(self, event) -> None:
            if event.step == 1:
                raise LookupError("no credentials")
            super().on_event(event)

        def close(self) -> None:
            if self.attempt == 1:
                raise RuntimeError("cannot be closed")
            super().close()

    writers: list[Odd] = []

    def open_writer(attempt: int) -> Odd:
        if attempt == 2:
            raise ValueError("cannot be opened")
        writers.append(Odd(attempt))
        return writers[-1]

    log = EventLog(open_writer)
    for attempt, step in [(1, 1), (1, 2), (2, 3), (3, 4)]:
        log.emit(event("state", attempt, 0, step))
    log.close()
    assert [(w.attempt, w.steps, w.is_closed) for w in writers] == [(1, [2], False), (3, [4], True)]
    for said in ("no credentials", "cannot be closed", "cannot be opened"):
        assert said in caplog.text


def test_the_ledger_is_durable_up_to_what_was_emitted_before():
    writers: list[Writer] = []
    log = EventLog(opener(writers))
    for number in range(1, 200):
        log.emit(event("step", 1, 0, number))
    log.make_ledger_durable()
    assert writers[0].durable_step == 199
    log.close()


def test_a_ledger_that_cannot_be_made_durable_is_told_to_whoever_asked():
    log = EventLog(opener([], broken=True))
    log.emit(event("step", 1, 0, 1))
    with pytest.raises(StorageError, match="the disk is full"):
        log.make_ledger_durable()
    log.close()


def test_without_events_there_is_nothing_to_make_durable():
    log = EventLog(opener([]))
    log.make_ledger_durable()
    log.close()


class Flaky(Writer):
    """Storage is down for the first `failures` calls of what opens or closes it."""

    down: list[int]

    def close(self) -> None:
        if self.down[0]:
            self.down[0] -= 1
            raise StorageError("no route")
        super().close()


def flaky(writers: list[Flaky], failures: list[int]):
    def open_writer(attempt: int) -> Flaky:
        if failures[0]:
            failures[0] -= 1
            raise StorageError("no route")
        writers.append(Flaky(attempt))
        writers[-1].down = failures
        return writers[-1]

    return open_writer


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(Backoff, "next", lambda self: self.__dict__.update(failures=self.failures + 1) or 0.001)


def test_events_wait_while_storage_is_down_and_none_is_lost(no_pauses, caplog):
    writers, failures = [], [3]
    log = EventLog(flaky(writers, failures))
    for step in range(5):
        log.emit(event("step", 1, 0, step))
    log.make_ledger_durable()
    failures[0] = 3
    log.emit(event("step", 2, 0, 5))
    assert log.close()
    assert [(w.attempt, w.steps, w.is_closed) for w in writers] == [(1, [0, 1, 2, 3, 4], True), (2, [5], True)]
    assert "events wait in memory until storage takes them" in caplog.text and "Traceback" not in caplog.text


def test_storage_that_stays_down_holds_up_the_end_for_so_long_only(no_pauses, caplog):
    log = EventLog(flaky([], [10**9]))
    log.emit(event("step", 1, 0, 1))
    began = time.monotonic()
    assert not log.close(0.2) and time.monotonic() - began < 5
    assert "no route" in caplog.text


def test_a_ledger_that_takes_too_long_is_a_matter_of_storage_and_tried_again(monkeypatch):
    monkeypatch.setattr(event_log, "SYNC_TIMEOUT_S", 0.05)
    gate = threading.Event()
    log = EventLog(lambda attempt: gate.wait(10) and Writer(attempt))
    log.emit(event("step", 1, 0, 1))
    with pytest.raises(StorageError, match="not durable within"):
        log.make_ledger_durable()
    gate.set()
    log.close()
