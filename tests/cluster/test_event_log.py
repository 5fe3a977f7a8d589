"""Events are written in order, by a writer per attempt, whatever storage does."""

from __future__ import annotations

import threading

import pytest

from tests.cluster.fakes import event
from zerofleet.cluster.event_log import EventLog
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
