"""Writes events down in a thread of its own: slow storage or a slow tracker never holds up the controller."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from zerofleet.trainer.events import Event

SYNC_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 60.0
"""How long the last events may take to be written, and a tracker to say goodbye."""

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
    """`open_writer(attempt)` is called whenever the events go on to another attempt."""

    def __init__(self, open_writer: Callable[[int], EventWriter]) -> None:
        self._open_writer = open_writer
        self._queue: queue.SimpleQueue[Event | _Sync | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="event-log", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Returns at once."""
        self._queue.put(event)

    def make_ledger_durable(self) -> None:
        """Returns when all ledger entries so far survive a power cut. Raises StorageError, TimeoutError."""
        sync = _Sync()
        self._queue.put(sync)
        sync.done.result(SYNC_TIMEOUT_S)

    def close(self) -> None:
        """Returns when everything has been written, or cannot be."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

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
                    _close(writer)
                    writer = None
                if writer is None:
                    writer, attempt = self._open_writer(event.attempt), event.attempt
                writer.on_event(event)
            except Exception as error:  # noqa: BLE001 - a writer brings clients of storage and trackers, which raise anything
                _log.exception("writing an event failed: %s: %s", error, event)
        if writer is not None:
            _close(writer)


def _sync(writer: EventWriter | None, request: _Sync) -> None:
    try:
        if writer is not None:
            writer.make_ledger_durable()
    except Exception as error:  # noqa: BLE001 - for whoever asked
        request.done.set_exception(error)
    else:
        request.done.set_result(None)


def _close(writer: EventWriter) -> None:
    try:
        writer.close()
    except Exception as error:  # noqa: BLE001
        _log.exception("the last events of an attempt were not written: %s", error)
