"""Data preparation in a thread, so that the controller stays responsive and Ray starts meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

Say = Callable[..., None]
Progress = Callable[[str, float, str], None]

EVENT_INTERVAL_S = 0.5


class Cancelled(BaseException):
    """Raised in the preparation's progress callback: nobody waits for it any more. What is done so far stays."""


class Preparation:
    """Runs `work(progress)` and hands out its result. Progress is said at most twice a second."""

    def __init__(self, work: Callable[[Progress], Any], say: Say) -> None:
        self._work, self._say = work, say
        self._done = threading.Event()
        self._cancelled = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._said_at, self._stage = float("-inf"), ""
        threading.Thread(target=self._run, name="prepare", daemon=True).start()

    def wait(self, timeout_s: float) -> Any | None:
        """The result, or None when it takes longer than `timeout_s`. Raises what the work raised."""
        if not self._done.wait(timeout_s):
            return None
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        """Ends the work at its next sign of progress."""
        self._cancelled = True

    def _run(self) -> None:
        try:
            self._result = self._work(self._progress)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._error = error
        self._done.set()

    def _progress(self, stage: str, fraction: float, detail: str) -> None:
        if self._cancelled:
            raise Cancelled
        now = time.monotonic()
        if stage != self._stage or fraction >= 1 or now - self._said_at >= EVENT_INTERVAL_S:
            self._said_at, self._stage = now, stage
            self._say("prepare", stage=stage, fraction=fraction, detail=detail)
