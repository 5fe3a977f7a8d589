"""What a run under faults has to show against the unbroken one, and how long each fault cost. Pure: records in, findings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zerofleet.cluster.chaos.injector import Strike
from zerofleet.cluster.faults import Fault
from zerofleet.cluster.goodput.history import end_of
from zerofleet.launch.chaos.plan import ends_badly
from zerofleet.launch.chaos.record import Record
from zerofleet.trainer.events import Event

_SIGNS = ("error", "node_lost", "verdict", "incident", "stacks")
"""Kinds of events that say that something was noticed."""
_NOTICING_STATES = ("RECOVERING", "DRAINING", "PREPARING")
"""States that are entered because of a fault; PREPARING by the driver of a resume."""


@dataclass(frozen=True)
class Cost:
    """What a strike cost, by the run's events, in seconds after it. None: it never came to that."""

    detected_s: float | None
    """To the first event that says so."""
    restored_s: float | None
    """To the end of the first step that had not been done before; where the ranks ran on, to the next durable checkpoint; where
    nothing was left to do, to the end of the run."""
    repeated_steps: int
    """Steps that had been done before the strike and were done again after it."""


def problems(record: Record, reference: Record, faults: tuple[Fault, ...], strikes: Sequence[Strike]) -> list[str]:
    """Everything that the run does not show; empty: it is proved."""
    found = [f"{strike.fault} could not be brought about: {strike.error}" for strike in strikes if strike.error]
    struck = {strike.arrival.fault for strike in strikes}
    found += [f"{fault} never struck" for number, fault in enumerate(faults) if number not in struck]
    expected, losses, unbroken = "FAILED" if ends_badly(faults) else "FINISHED", record.losses(), reference.losses()
    if record.final_state != expected:
        found.append(f"the run ended in state {record.final_state or 'none'}, not {expected}: {record.last_verdict}")
    if expected == "FAILED":
        unbroken = {step: loss for step, loss in unbroken.items() if step <= max(losses, default=0)}
    if missing := sorted(unbroken.keys() - losses.keys()):
        found.append(f"{len(missing)} steps were not recorded, the first is step {missing[0]}")
    if odd := [step for step in sorted(losses) if step in unbroken and losses[step] != unbroken[step]]:
        step = odd[0]
        found.append(
            f"{len(odd)} losses differ from the unbroken run's, first at step {step}: {losses[step]!r} for {unbroken[step]!r}"
        )
    found += [*record.ledger_problems, *record.account_problems]
    if not record.ledger_problems and record.ledger_step != max(unbroken, default=0):
        found.append(f"the ledger ends with step {record.ledger_step}, not {max(unbroken, default=0)}")
    return found


def cost_of(record: Record, at: float, attempt: int) -> Cost:
    """Of a strike in an attempt at a time (Unix seconds)."""
    detected = next((event for event in record.events if end_of(event) >= at and _says_so(event)), None)
    before = {event.step for event in record.steps if end_of(event) <= at}
    after = [event for event in record.steps if event.start > at and event.attempt > attempt]
    new = [end_of(event) for event in after if event.step > max(before, default=0)]
    durable = [end_of(event) for event in record.events if event.kind == "checkpoint" and end_of(event) >= at]
    ends = [end_of(event) for event in record.events if event.kind == "state" and event.data["to"] == "FINISHED"]
    restored = new or durable or ends
    return Cost(
        end_of(detected) - at if detected else None,
        min(restored) - at if restored else None,
        len(before & {event.step for event in after}),
    )


def _says_so(event: Event) -> bool:
    if event.kind == "exit":
        return not event.data["killed"] and event.data["code"] != 0
    if event.kind == "state":
        return event.data["to"] in _NOTICING_STATES
    return event.kind in _SIGNS
