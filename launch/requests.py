"""Looks for requests (`stop`, `save`, `stacks`) in the run folder, in a thread: storage that is slow or down never holds up the controller."""

from __future__ import annotations

import logging
import queue
import threading
import time

from zerofleet.cluster.policy.backoff import Backoff
from zerofleet.trainer.run_folder import RunFolder

_log = logging.getLogger(__name__)


class RequestWatch:
    """Requests with a number above `after`: older ones were for another driver. No clock is asked: that of whoever requests may differ."""

    def __init__(self, run: RunFolder, after: int, interval_s: float) -> None:
        self._run, self._seen, self._interval_s = run, after, interval_s
        self._found: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._closing = threading.Event()

    def start(self) -> None:
        """Begins to look."""
        threading.Thread(target=self._watch, name="requests", daemon=True).start()

    def take(self) -> list[str]:
        """What was asked for since the last call."""
        actions = []
        while not self._found.empty():
            actions.append(self._found.get())
        return actions

    def close(self) -> None:
        """Returns at once; a look that is under way ends by itself."""
        self._closing.set()

    def _watch(self) -> None:
        backoff, pause_s, down_since = Backoff(), 0.0, 0.0
        while not self._closing.wait(pause_s):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - nobody could ask for a stop any more
                if backoff.failures == 0:
                    down_since = time.monotonic()
                    _log.warning("requests cannot be looked for and are looked for again: %s", error)
                pause_s = max(self._interval_s, backoff.next())
            else:
                if backoff.failures:
                    _log.info("requests could not be looked for during %.0f s", time.monotonic() - down_since)
                backoff, pause_s = Backoff(), self._interval_s

    def _look(self) -> None:
        for number, request in self._run.requests(self._seen):
            self._seen = number
            self._found.put(request["action"])
