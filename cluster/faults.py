"""Injected faults, scripted as data: `[{"kind": "kill", "rank": 1, "step": 30, "point": "step", "attempt": 1}]`.

A fault strikes where a rank is. Some kinds the rank does to itself: kill (SIGKILL), raise (an exception), freeze (SIGSTOP: no
sign of life, and no exit), nan (a NaN gradient, or at the point `outer` a NaN in a delta), spike (a loss a hundred times as high), wrong_sample (one
sample that is not its own: nothing survives that, and the audit has to name the rank), garbage (at the point `outer`, a delta that points the
wrong way). The others hit something else (OUTSIDE, cluster/chaos/injector.py): the rank
that arrives there only says so at the fault's gate, and waits until it has happened. docs/faults.md describes every kind.

`point` is one of POINTS; `step` is the step that is running there. `attempt` null strikes in every attempt, "any" once,
in whichever attempt gets there first. With `position`, a fault of point `step` lies in the data: it strikes only when the step is fed
that position.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from zerofleet.cluster.chaos.gate import Arrival, announce
from zerofleet.cluster.chaos.node import strike_node
from zerofleet.trainer.data.quarantine import Ranges
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.events import PHASES

INSIDE = ("kill", "raise", "freeze", "nan", "spike", "wrong_sample", "garbage")
NODE = ("kill_node", "cut_node", "slow_node")
OUTSIDE = (
    "kill_agent",
    "kill_driver",
    "kill_head",
    "sigterm",
    "disk_full",
    "storage_outage",
    "flip_byte",
    "truncate",
    "flip_snapshot",
    "zombie",
)
KINDS = INSIDE + NODE + OUTSIDE
MOUNTED = ("disk_full", "storage_outage")
"""Kinds that mount something over the run folder."""
LASTING = (*MOUNTED, "cut_node", "slow_node")
"""Kinds that last `for_s` seconds."""
POINTS = tuple(phase for phase in PHASES if phase != "import")
"""Where the trainer asks whether a fault is due; before its imports are done there is no trainer."""
ONCE = "any"
VARIABLE = "ZEROFLEET_FAULTS"
"""Environment variable of the driver that holds the faults of a run."""


class InjectedFault(RuntimeError):
    """What a `raise` fault raises."""


@dataclass(frozen=True)
class Fault:
    """Strikes once in an attempt: when `rank` is at `point` of `step`."""

    kind: str
    rank: int
    step: int
    """At the point `step`, which comes at every step, exactly this one; elsewhere the first time from this step on."""
    point: str = "step"
    attempt: int | str | None = 1
    position: int | None = None
    for_s: float | None = None
    """Seconds that a LASTING fault lasts; None: until the driver has ended, and of a node for good."""
    gate: str = ""
    """Where the rank says that it has arrived, and waits (chaos/gate.py); empty: nobody wants to know."""

    def is_due(self, point: str, step: int, ranges: Ranges) -> bool:
        is_fed = self.position is None or any(start <= self.position < end for start, end in ranges)
        return point == self.point and is_fed and (step == self.step or (point != "step" and step > self.step))

    def __str__(self) -> str:
        return f"{self.kind} at {self.point} {self.step}"


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Faults from JSON; an empty text is none. Raises UserError."""
    if not text.strip():
        return ()
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise UserError(f"{VARIABLE} is not JSON: {error}") from error
    faults = faults_of(entries, VARIABLE)
    if lonely := [fault for fault in faults if not fault.gate and (fault.kind in OUTSIDE or fault.attempt == ONCE)]:
        raise UserError(f"{VARIABLE}: {lonely[0]} needs somebody outside the run: `zerofleet chaos RECIPE --plan PLAN`")
    return faults


def faults_of(entries: Any, source: str) -> tuple[Fault, ...]:
    """Faults from parsed JSON or YAML; `source` names it in errors. Raises UserError."""
    if not isinstance(entries, list):
        raise UserError(f"{source} must be a list of faults, not {type(entries).__name__}")
    return tuple(_parse(entry, source) for entry in entries)


def _parse(entry: Any, source: str) -> Fault:
    names = [field.name for field in fields(Fault)]
    if not isinstance(entry, dict) or not {"kind", "step"} <= entry.keys() or not entry.keys() <= set(names):
        raise UserError(
            f"{source}: {entry!r} is not a fault: give kind, rank and step, of the fields {', '.join(names)}"
        )
    if entry["kind"] not in KINDS:
        raise UserError(f"{source}: kind {entry['kind']!r} is none of {', '.join(KINDS)}")
    if entry["kind"] in INSIDE + NODE and "rank" not in entry:
        whom = "a rank" if entry["kind"] in INSIDE else "the node of a rank"
        raise UserError(f"{source}: {entry!r} is not a fault: give kind, rank and step: {entry['kind']} strikes {whom}")
    fault = Fault(**{"rank": 0, **entry})
    for problem in _problems(fault):
        raise UserError(f"{source}: {problem}")
    return fault


def _problems(fault: Fault) -> list[str]:
    found = []
    if fault.point not in POINTS:
        found.append(f"point {fault.point!r} is none of {', '.join(POINTS)}")
    for name, value, least in (("step", fault.step, 0), ("rank", fault.rank, 0)):
        if not _is_number(value, int) or value < least:
            found.append(f"{name}={value!r} of {fault.kind} must be a whole number, at least {least}")
    if fault.attempt not in (None, ONCE) and not (_is_number(fault.attempt, int) and int(fault.attempt) >= 1):
        found.append(
            f"attempt={fault.attempt!r} of {fault.kind}: give a number from 1, `any`, or null for every attempt"
        )
    if fault.position is not None and not (fault.point == "step" and _is_number(fault.position, int)):
        found.append(f"position={fault.position!r} of {fault.kind} must be a whole number, and its point `step`")
    if fault.kind == "garbage" and fault.point != "outer":
        found.append(f"garbage is what becomes of a silo's delta: its point is `outer`, not {fault.point!r}")
    if fault.for_s is not None and fault.kind not in LASTING:
        found.append(f"for_s belongs to {', '.join(LASTING)}: {fault.kind} happens at once")
    if fault.for_s is not None and not (_is_number(fault.for_s, int, float) and fault.for_s > 0):
        found.append(f"for_s={fault.for_s!r} of {fault.kind} must be a number of seconds above 0")
    if fault.kind == "storage_outage" and fault.for_s is None:
        found.append("storage_outage needs for_s, the seconds that it lasts")
    return found


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def format_faults(faults: Sequence[Fault]) -> str:
    """The text that `parse_faults` reads."""
    return json.dumps([asdict(fault) for fault in faults])


class FaultInjector:
    """The trainer's one hook: called as `fault(point, step, ranges)`."""

    def __init__(self, faults: Sequence[Fault], rank: int, attempt: int) -> None:
        self._attempt = attempt
        self._pending = list(enumerate(faults))
        self._pending = [(n, f) for n, f in self._pending if f.rank == rank and f.attempt in (None, ONCE, attempt)]

    def __call__(self, point: str, step: int, ranges: Ranges = ()) -> str | None:
        due = next(((number, fault) for number, fault in self._pending if fault.is_due(point, step, ranges)), None)
        if due is None:
            return None
        self._pending.remove(due)
        number, fault = due
        if fault.gate and not announce(fault.gate, Arrival(number, self._attempt, step, os.getpid())):
            return None
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault.kind == "raise":
            raise InjectedFault(f"injected at {point} of step {step}")
        elif fault.kind in NODE:
            strike_node(fault.kind, fault.for_s)
        return fault.kind
