"""What a run has written down, as the proof reads it."""

from __future__ import annotations

from dataclasses import dataclass

from zerofleet.cluster.goodput.history import end_of
from zerofleet.launch.audit import audit_run
from zerofleet.launch.chaos.balance import balance
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import AttemptRecord, RunFolder


@dataclass(frozen=True)
class Record:
    """A run that has ended."""

    attempts: tuple[AttemptRecord, ...]
    events: tuple[Event, ...]
    """In the order of their ends."""
    steps: tuple[Event, ...]
    """The `step` events, attempt by attempt."""
    ledger_problems: tuple[str, ...]
    """What the audit finds, in sentences; empty: every position was fed once."""
    ledger_step: int
    """The newest step that counts and is in the ledger, or has to be."""
    account_problems: tuple[str, ...] = ()
    """What does not add up of its seconds, in sentences."""

    @staticmethod
    def read(run: RunFolder) -> Record:
        events = sorted(run.events(), key=end_of)
        steps = [Event(**line) for line in run.read("metrics") if line["kind"] == "step"]
        return Record(tuple(run.attempts()), tuple(events), tuple(steps), *_audited(run), tuple(balance(run)))

    @property
    def final_state(self) -> str:
        """The last state that a driver said; empty when there is none."""
        return next((str(event.data["to"]) for event in reversed(self.events) if event.kind == "state"), "")

    @property
    def last_verdict(self) -> str:
        return next((str(e.data["sentence"]) for e in reversed(self.events) if e.kind == "verdict"), "")

    @property
    def total_s(self) -> float:
        """From the first event to the end of the last."""
        return end_of(self.events[-1]) - self.events[0].start if self.events else 0.0

    @property
    def quarantine(self) -> list[list[int]]:
        """The position ranges that the run has left out in the end."""
        return [list(bounds) for bounds in self.attempts[-1].quarantine] if self.attempts else []

    def losses(self) -> dict[int, float]:
        """Per step, the loss of the last attempt that ran it."""
        return {event.step: event.data["loss"] for event in sorted(self.steps, key=lambda event: event.attempt)}


def _audited(run: RunFolder) -> tuple[tuple[str, ...], int]:
    try:
        found = audit_run(run).audit
    except ZerofleetError as error:
        return (f"the ledger cannot be audited: {error}",), 0
    return tuple(f"the ledger is not exact: {finding}" for finding in found.findings), found.last_step
