"""The driver's own log: one plain line per event that happens once."""

from __future__ import annotations

import contextlib
import sys
import time

from zerofleet.launch.screens import event_line
from zerofleet.trainer.events import Event


def write_log_line(event: Event) -> None:
    """Writes a notable event to stdout, with the time it began at. Never raises because stdout cannot be written."""
    if line := log_line(event):
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.start))
        with contextlib.suppress(OSError):  # a full disk or a closed pipe must not end the run; the event is kept
            sys.stdout.write(f"{stamp}  {line}\n")
            sys.stdout.flush()


def log_line(event: Event) -> str:
    """What a followed run shows, and for a run that failed the whole reason; empty for what repeats."""
    why = " ".join(str(event.data.get("why") or "").split())
    return f"FAILED: {why}" if event.kind == "state" and event.data["to"] == "FAILED" and why else event_line(event)
