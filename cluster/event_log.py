"""Writes events down in a thread of its own: slow storage or a slow tracker never holds up the controller."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import Event

CLOSE_TIMEOUT_S = 60.0
"""How long the last events may take to be written, and a tracker to say goodbye."""

_log = logging.getLogger(__name__)


class EventWriter(Protocol):
    """What trainer.recorder.Recorder is: the events of one attempt."""

    def on_event(self, event: Event) -> None: ...
    def close(self) -> None: ...


class EventLog:
    """`open_writer(attempt)` is called whenever the events go on to another attempt."""

    def __init__(self, open_writer: Callable[[int], EventWriter]) -> None:
        self._open_writer = open_writer
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="event-log", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Returns at once."""
        self._queue.put(event)

    def close(self) -> None:
        """Returns when everything has been written, or cannot be."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _write_all(self) -> None:
        writer: EventWriter | None = None
        attempt = 0
        while (event := self._queue.get()) is not None:
            try:
                if writer is None or event.attempt > attempt:
                    if writer is not None:
                        writer.close()
                    writer, attempt = self._open_writer(event.attempt), event.attempt
                writer.on_event(event)
            except StorageError as error:
                _log.error("an event was not written: %s: %s", error, event.to_json())
        if writer is not None:
            try:
                writer.close()
            except StorageError as error:
                _log.error("the last events were not written: %s", error)
