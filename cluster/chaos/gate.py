"""The gate: a rank that is where a fault is to strike says so on a Unix socket and waits for the answer.

So a fault strikes exactly where its plan says, whoever it strikes, and its moment is known. One JSON line from the rank; the
answer is STRIKE or PASS (the fault has struck already), or nothing more when the strike has hit the rank or its link. Nobody at the
gate is a PASS: a run outlives whoever plays tricks on it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

STRIKE, PASS = b"s", b"p"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrival:
    """A rank is where a fault is to strike."""

    fault: int
    """Its number in the plan, from 0."""
    attempt: int
    step: int
    pid: int
    """Of the rank process."""
    at: float = 0.0
    """Unix time in seconds, as the one at the gate saw it."""


def announce(gate: str, arrival: Arrival) -> bool:
    """Called by a rank: waits until the strike has happened, or may. False when there is to be none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(gate)
            link.sendall(json.dumps(asdict(arrival)).encode() + b"\n")
            return link.recv(1) == STRIKE
        except OSError:
            return False


class Gate:
    """Listens for ranks; each arrival is handed to `strike`, which says whether the fault strikes. One after the other."""

    def __init__(self, strike: Callable[[Arrival], bool]) -> None:
        self._strike = strike
        self._folder = tempfile.mkdtemp(prefix="zf-gate-", dir="/tmp")  # short: a socket's path is under 107 bytes
        self.path = f"{self._folder}/gate"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, name="gate", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._thread.join()
        self._listener.close()
        shutil.rmtree(self._folder)

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:  # closed
                return
            with link, contextlib.suppress(OSError):  # the strike may have ended the rank
                line = link.makefile("rb").readline()
                if line:
                    link.sendall(STRIKE if self._ask(Arrival(**{**json.loads(line), "at": time.time()})) else PASS)

    def _ask(self, arrival: Arrival) -> bool:
        try:
            return self._strike(arrival)
        except Exception:  # noqa: BLE001 - the rank must not wait for ever; whoever strikes keeps its own record
            _log.exception("the strike at %s failed", arrival)
            return False
