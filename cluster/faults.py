"""Injected faults, scripted as data: `[{"kind": "kill", "rank": 1, "step": 30, "point": "step", "attempt": 1}]`.

`kind` is kill (SIGKILL), raise (an exception), freeze (SIGSTOP: no sign of life, and no exit), nan (a NaN gradient) or spike (a
loss a hundred times as high). `point` is a phase of events.PHASES; `step` is the step that is running there. `attempt` null strikes
in every attempt. With `position`, a fault of point `step` lies in the data: it strikes only when the step is fed that position.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from zerofleet.trainer.data.quarantine import Ranges
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.events import PHASES

KINDS = ("kill", "raise", "freeze", "nan", "spike")
VARIABLE = "ZEROFLEET_FAULTS"
"""Environment variable of the driver that holds the faults of a run."""


class InjectedFault(RuntimeError):
    """What a `raise` fault raises."""


@dataclass(frozen=True)
class Fault:
    """Strikes once: when `rank` reaches `point` of `step` in `attempt`."""

    kind: str
    rank: int
    step: int
    point: str = "step"
    attempt: int | None = 1
    position: int | None = None

    def is_due(self, point: str, step: int, ranges: Ranges) -> bool:
        is_fed = self.position is None or any(start <= self.position < end for start, end in ranges)
        return (self.point, self.step) == (point, step) and is_fed


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Faults from JSON; an empty text is none. Raises UserError."""
    if not text.strip():
        return ()
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise UserError(f"{VARIABLE} is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"{VARIABLE} must be a list of faults, not {type(entries).__name__}")
    return tuple(_parse(entry) for entry in entries)


def _parse(entry: Any) -> Fault:
    names = [field.name for field in fields(Fault)]
    if not isinstance(entry, dict) or not {"kind", "rank", "step"} <= entry.keys() or not entry.keys() <= set(names):
        raise UserError(
            f"{VARIABLE}: {entry!r} is not a fault: give kind, rank and step, of the fields {', '.join(names)}"
        )
    fault = Fault(**entry)
    if fault.kind not in KINDS:
        raise UserError(f"{VARIABLE}: kind {fault.kind!r} is none of {', '.join(KINDS)}")
    if fault.point not in PHASES:
        raise UserError(f"{VARIABLE}: point {fault.point!r} is none of {', '.join(PHASES)}")
    return fault


def format_faults(faults: Sequence[Fault]) -> str:
    """The text that `parse_faults` reads."""
    return json.dumps([asdict(fault) for fault in faults])


class FaultInjector:
    """The trainer's one hook: called as `fault(point, step, ranges)`."""

    def __init__(self, faults: Sequence[Fault], rank: int, attempt: int) -> None:
        self._pending = [fault for fault in faults if fault.rank == rank and fault.attempt in (None, attempt)]

    def __call__(self, point: str, step: int, ranges: Ranges = ()) -> str | None:
        due = next((fault for fault in self._pending if fault.is_due(point, step, ranges)), None)
        if due is None:
            return None
        self._pending.remove(due)
        if due.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif due.kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif due.kind == "raise":
            raise InjectedFault(f"injected at {point} of step {step}")
        return due.kind
