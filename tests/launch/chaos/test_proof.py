"""The proof on made-up records: it finds what is lost, repeated or different, and reads the costs off the events."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zerofleet.cluster.chaos.gate import Arrival
from zerofleet.cluster.chaos.injector import Strike
from zerofleet.cluster.faults import Fault
from zerofleet.launch.chaos.proof import cost_of, problems
from zerofleet.launch.chaos.record import Record
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import AttemptRecord

KILL = Fault("kill", 1, 4)
STRIKE = Strike(KILL, Arrival(0, 1, 4, 99), at=103.5)
"""In the middle of step 4: steps last a second each, step n ends at 100 + n."""


def attempt(number: int, start: int) -> AttemptRecord:
    return AttemptRecord(number, start, 1 if start else None, 2, 1, 0.0, "here", 1)


def step(number: int, of_attempt: int, ended: float) -> Event:
    return Event("step", of_attempt, 0, number, "step", ended - 1.0, 1.0, {"loss": 9.0 - number})


def say(kind: str, at: float, **data) -> Event:
    return Event(kind, 1, DRIVER, 0, "running", at, data=data)


def unbroken() -> Record:
    steps = tuple(step(n, 1, 100.0 + n) for n in range(1, 7))
    return Record((attempt(1, 0),), (say("state", 107.0, to="FINISHED"),), steps, (), 6)


def recovered() -> Record:
    """Killed in step 4; attempt 2 starts from step 2 and does step 3 again."""
    events = (
        say("info", 101.0, message=""),
        say("exit", 103.6, killed=False, code=None, signal=9),
        say("state", 103.7, to="RECOVERING"),
        say("state", 112.0, to="FINISHED"),
    )
    steps = (*(step(n, 1, 100.0 + n) for n in (1, 2, 3)), *(step(n, 2, 103.0 + n) for n in (3, 4, 5, 6)))
    return Record((attempt(1, 0), attempt(2, 2)), events, steps, (), 6)


def found(record: Record, faults=(KILL,), strikes=(STRIKE,)) -> list[str]:
    return problems(record, unbroken(), faults, strikes)


def test_a_run_that_came_through():
    assert found(recovered()) == []


def test_a_loss_that_differs_in_its_last_bit():
    steps = list(recovered().steps)
    steps[-1] = replace(steps[-1], data={"loss": 3.0000000000000004})
    (problem,) = found(replace(recovered(), steps=tuple(steps)))
    assert "1 losses differ" in problem and "step 6: 3.0000000000000004 for 3.0" in problem


def test_a_step_that_nobody_recorded():
    assert "1 steps were not recorded, the first is step 6" in found(replace(recovered(), steps=recovered().steps[:-1]))


def test_what_the_audit_finds_is_not_proved():
    assert found(replace(recovered(), ledger_problems=("a gap",), ledger_step=4)) == ["a gap"]


@pytest.mark.parametrize("last", [5, 7])
def test_a_ledger_that_ends_elsewhere(last):
    assert found(replace(recovered(), ledger_step=last)) == [f"the ledger ends with step {last}, not 6"]


def test_a_run_that_did_not_end():
    record = recovered()
    (problem,) = found(replace(record, events=(*record.events[:-1], say("state", 110.0, to="RUNNING"))))
    assert "the run ended in state RUNNING, not FINISHED" in problem


def test_a_fault_that_never_struck_or_could_not():
    assert found(recovered(), strikes=()) == ["kill at step 4 never struck"]
    failed = replace(STRIKE, error="MountError: no")
    assert found(recovered(), strikes=(failed,)) == ["kill at step 4 could not be brought about: MountError: no"]


def test_a_lasting_nan_ends_with_a_verdict_and_what_was_done_before_is_exact():
    fault = Fault("nan", 0, 4, attempt=None)
    short = Record(
        (attempt(1, 0), attempt(2, 3)),
        (say("verdict", 105.0, sentence="twice"), say("state", 105.0, to="FAILED")),
        unbroken().steps[:3],
        (),
        3,
    )
    assert found(short, (fault,)) == []
    assert "not FAILED" in found(recovered(), (fault,))[0]


def test_the_cost_of_a_strike():
    cost = cost_of(recovered(), STRIKE.at, 1)
    assert cost.detected_s == pytest.approx(0.1)
    assert cost.restored_s == pytest.approx(3.5), "the end of step 4, the first new one"
    assert cost.repeated_steps == 1


def test_what_lasts_is_over_when_a_checkpoint_is_durable_and_what_is_late_when_the_run_ends():
    checkpoint = say("checkpoint", 104.0)
    events = (say("incident", 103.8, message=""), checkpoint, say("state", 107.0, to="FINISHED"))
    cost = cost_of(replace(unbroken(), events=events), STRIKE.at, 1)
    assert (cost.detected_s, cost.restored_s) == (pytest.approx(0.3), pytest.approx(0.5))
    cost = cost_of(unbroken(), STRIKE.at, 1)
    assert (cost.detected_s, cost.restored_s, cost.repeated_steps) == (None, pytest.approx(3.5), 0)
