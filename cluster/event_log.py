"""Writes events down in a thread of its own: slow storage or a slow tracker never holds up the controller."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from zerofleet.cluster.policy.backoff import Backoff
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import Event

SYNC_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 60.0
"""How long the last events may take to be written, storage that is down included, and a tracker to say goodbye."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class EventWriter(Protocol):
    """What trainer.recorder.Recorder is: the events of one attempt."""

    def on_event(self, event: Event) -> None: ...
    def make_ledger_durable(self) -> None: ...
    def close(self) -> None: ...


class _Sync:
    """A request, in its turn among the events, to make the ledger durable."""

    def __init__(self) -> None:
        self.done: Future[None] = Future()


class EventLog:
    """`open_writer(attempt)` is called whenever the events go on to another attempt.

    While storage is down the events wait in memory; a writer keeps what it was given and could not write.
    """

    def __init__(
        self, open_writer: Callable[[int], EventWriter], also: Callable[[Event], None] = lambda event: None
    ) -> None:
        """`also` hears every event at once, and has to return at once."""
        self._open_writer, self._also = open_writer, also
        self._queue: queue.SimpleQueue[Event | _Sync | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self._is_whole = True
        self._thread = threading.Thread(target=self._write_all, name="event-log", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Returns at once."""
        self._queue.put(event)
        self._also(event)

    def make_ledger_durable(self) -> None:
        """Returns when all ledger entries so far survive a power cut. Raises StorageError, also when it takes too long."""
        sync = _Sync()
        self._queue.put(sync)
        try:
            sync.done.result(SYNC_TIMEOUT_S)
        except TimeoutError as error:
            raise StorageError(
                f"the ledger was not durable within {SYNC_TIMEOUT_S:g} s: storage is slow or down"
            ) from error

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Returns when everything has been written, or cannot be within `timeout_s`, and CLOSE_TIMEOUT_S for what was begun. Whether it
        was handed to a writer that could be closed."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._given_up.set()
        self._thread.join(CLOSE_TIMEOUT_S)
        return self._is_whole and not self._thread.is_alive()

    def _write_all(self) -> None:
        """Goes on after any exception: what comes later, the final state above all, may well be written."""
        writer: EventWriter | None = None
        attempt = 0
        while (event := self._queue.get()) is not None:
            if isinstance(event, _Sync):
                _sync(writer, event)
                continue
            try:
                if writer is not None and event.attempt > attempt:
                    self._close(writer)
                    writer = None
                if writer is None:
                    opened = event.attempt
                    writer, attempt = self._insist(partial(self._open_writer, opened)), opened
                writer.on_event(event)
            except StorageError as error:
                if writer is None:  # nobody has it
                    self._is_whole = False
                    _log.error("an event was not written: %s: %s", error, event)
                else:
                    _log.warning("events wait to be written: %s", error)
            except Exception as error:  # noqa: BLE001 - a writer brings clients of storage and trackers, which raise anything
                _log.exception("writing an event failed: %s: %s", error, event)
        if writer is not None:
            self._close(writer)

    def _close(self, writer: EventWriter) -> None:
        try:
            self._insist(writer.close)
        except Exception as error:  # noqa: BLE001
            self._is_whole = False
            _log.exception("the last events of an attempt were not written: %s", error)

    def _insist(self, action: Callable[[], T]) -> T:
        """Tries again while storage is down, until the log is closed and its time is over. Then raises what storage said."""
        backoff = Backoff()
        while True:
            try:
                return action()
            except StorageError as error:
                if backoff.failures == 0:
                    _log.warning("events wait in memory until storage takes them: %s", error)
                if self._given_up.wait(backoff.next()):
                    raise


def _sync(writer: EventWriter | None, request: _Sync) -> None:
    try:
        if writer is not None:
            writer.make_ledger_durable()
    except Exception as error:  # noqa: BLE001 - for whoever asked
        request.done.set_exception(error)
    else:
        request.done.set_result(None)
