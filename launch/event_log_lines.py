"""The driver's own log: one plain line per event that happens once; in a pod JSON lines, from which somebody far away can follow the run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from zerofleet.launch.screens import event_line
from zerofleet.trainer.events import Event

FORMAT = "ZEROFLEET_LOG_FORMAT"
"""Environment variable: `json`, else plain lines."""
STEP_INTERVAL_S = 1.0
"""JSON: seconds between two steps, and two reports of the preparation. The last one before something else happens is always told."""

_UNTOLD = frozenset(
    ("phase", "heartbeat", "snapshot", "replicated", "written", "unwritten", "recalled", "ranks", "plan")
)
_FREQUENT = frozenset(("step", "prepare"))


def write_log_line(event: Event) -> None:
    """Writes a notable event to stdout, with the time it began at. Never raises because stdout cannot be written."""
    lines = _json_log.lines(event) if os.environ.get(FORMAT) == "json" else _plain(event)
    for line in lines:
        with contextlib.suppress(OSError):  # a full disk or a closed pipe must not end the run; the event is kept
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


class JsonLog:
    """Which events are told, and which of those that come by the hundred."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._told_at: dict[str, float] = {}
        self._held: Event | None = None

    def lines(self, event: Event) -> list[str]:
        """JSON lines to be written now."""
        if event.kind in _UNTOLD:
            return []
        with self._lock:
            return [told(each).to_json() for each in self._due(event)]

    def _due(self, event: Event) -> Iterator[Event]:
        if event.kind in _FREQUENT:
            now = self._clock()
            if now - self._told_at.get(event.kind, float("-inf")) < STEP_INTERVAL_S:
                self._held = event
                return
            self._told_at[event.kind] = now
        elif self._held is not None:
            yield self._held
        self._held = None
        yield event


def told(event: Event) -> Event:
    """Without the ledger's line, which grows with the ranks and is in the run folder."""
    if "ledger" not in event.data:
        return event
    return dataclasses.replace(event, data={key: value for key, value in event.data.items() if key != "ledger"})


_json_log = JsonLog()


def _plain(event: Event) -> list[str]:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.start))
    return [f"{stamp}  {line}"] if (line := log_line(event)) else []


def log_line(event: Event) -> str:
    """What a followed run shows, and for a run that failed the whole reason; empty for what repeats."""
    why = " ".join(str(event.data.get("why") or "").split())
    return f"FAILED: {why}" if event.kind == "state" and event.data["to"] == "FAILED" and why else event_line(event)
