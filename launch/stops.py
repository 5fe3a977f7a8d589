"""Signals as requests to stop."""

from __future__ import annotations

import ctypes
import os
import signal
from types import FrameType

_PR_SET_PDEATHSIG = 1
PARENT = "ZEROFLEET_PARENT_PID"
"""Environment variable with the process that must not be outlived."""


class Stops:
    """Signals as requests: the first SIGTERM or SIGINT is a stop, the second ends at once."""

    def __init__(self) -> None:
        self._pending: list[str] = []
        self._asked = False
        self._listen()

    def _listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Ray's client (2.60) puts Abseil's handler of crashes before ours, for SIGTERM too. It writes a stack, calls ours, and has set an alarm that aborts
        # the process 3 s later, whatever it is saving then (absl/debugging/failure_signal_handler.cc, alarm_on_failure_secs).
        signal.alarm(0)
        self._listen()
        self._pending.append("end" if self._asked else "stop")
        self._asked = True

    @property
    def is_asked(self) -> bool:
        """Whether there was a signal."""
        return self._asked

    def ask(self) -> None:
        """A stop that the driver itself asks for; a signal after it is the first one still."""
        self._pending.append("stop")

    def take(self) -> list[str]:
        """What was asked for since the last call. For the main thread, again and again: what a library has put before our handlers is gone after it."""
        self._listen()
        taken, self._pending = self._pending, []
        return taken


def stop_with_parent() -> None:
    """From here on the kernel sends SIGTERM when the process ends that started this one and named itself in PARENT; at once, when it has
    ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(os.environ.get(PARENT, os.getppid())):
        os.kill(os.getpid(), signal.SIGTERM)
