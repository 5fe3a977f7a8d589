"""The gate: a rank that is where a fault is to strike says so on a socket and waits for the answer.

So a fault strikes exactly where its plan says, whoever it strikes, and its moment is known. The socket is a Unix socket where all ranks
are on this host, else one of TCP, which hears nobody who does not know its token. One JSON line from the rank; the answer is STRIKE or PASS (the fault has struck already), or nothing more when the strike has hit the rank or its link. Nobody at the
gate is a PASS: a run outlives whoever plays tricks on it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
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
_CONNECT_TIMEOUT_S = 10.0
_LONGEST_LINE_BYTES = 4096

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
    """Called by a rank with `Gate.path`: waits until the strike has happened, or may. False when there is to be none."""
    where, _, token = gate.rpartition("/")
    try:
        with _connected(gate if gate.startswith("/") else where) as link:
            link.sendall(json.dumps({"token": token, **asdict(arrival)}).encode() + b"\n")
            return link.recv(1) == STRIKE
    except OSError:
        return False


def _connected(where: str) -> socket.socket:
    """To a path, or to host:port. Raises OSError."""
    if not where.startswith("/"):
        host, _, port = where.rpartition(":")
        link = socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S)
        link.settimeout(None)  # a strike takes as long as it takes
        return link
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(where)
    except OSError:
        link.close()
        raise
    return link


class Gate:
    """Listens for ranks; each arrival is handed to `strike`, which says whether the fault strikes. One after the other."""

    def __init__(self, strike: Callable[[Arrival], bool], address: str = "") -> None:
        """`address` is this host's, as other hosts reach it; without it ranks of this host only."""
        self._strike = strike
        self._folder = tempfile.mkdtemp(prefix="zf-gate-", dir="/tmp")  # short: a socket's path is under 107 bytes
        self._listener = socket.socket(socket.AF_INET if address else socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind((address, 0) if address else f"{self._folder}/gate")
        self._listener.listen()
        self._token = secrets.token_hex(16) if address else "gate"
        self.path = f"{address}:{self._listener.getsockname()[1]}/{self._token}" if address else f"{self._folder}/gate"
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
                arrival = self._heard(link.makefile("rb").readline(_LONGEST_LINE_BYTES))
                if arrival is not None:
                    link.sendall(STRIKE if self._ask(arrival) else PASS)

    def _heard(self, line: bytes) -> Arrival | None:
        """None for whoever does not know the token."""
        try:
            told = json.loads(line)
            is_ours = secrets.compare_digest(str(told.pop("token")), self._token)
            return Arrival(**{**told, "at": time.time()}) if is_ours else None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def _ask(self, arrival: Arrival) -> bool:
        try:
            return self._strike(arrival)
        except Exception:  # noqa: BLE001 - the rank must not wait for ever; whoever strikes keeps its own record
            _log.exception("the strike at %s failed", arrival)
            return False
