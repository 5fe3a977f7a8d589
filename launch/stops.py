"""Signals as requests to stop."""

from __future__ import annotations

import signal
from types import FrameType


class Stops:
    """Signals as requests: the first SIGTERM or SIGINT is a stop, the second ends at once."""

    def __init__(self) -> None:
        self._pending: list[str] = []
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._pending.append("end" if self._asked else "stop")
        self._asked = True

    @property
    def is_asked(self) -> bool:
        """Whether there was a signal."""
        return self._asked

    def take(self) -> list[str]:
        taken, self._pending = self._pending, []
        return taken
