"""`zerofleet chaos` with a driver that needs no Ray: what it refuses, what it says, and that a run without its faults proves nothing."""

from __future__ import annotations

import json

import pytest

from zerofleet.cluster.chaos.gate import Arrival
from zerofleet.cluster.chaos.injector import Strike
from zerofleet.cluster.faults import Fault
from zerofleet.launch.chaos.record import Record
from zerofleet.launch.chaos.trial import Trial
from zerofleet.launch.commands.chaos import table
from zerofleet.launch.config import load_job
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import AttemptRecord, RunFolder

KILL = Fault("kill", 1, 2)


@pytest.mark.parametrize(
    ("plan", "code", "words"),
    [
        (None, 4, "plan nowhere.yaml does not exist"),
        ("[{kind: kill, rank: 0, step: 4}]", 2, "never strikes, since the run has 3 steps"),
        ("[{kind: quake, step: 1}]", 2, "'quake' is none of"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(zerofleet, tmp_path, plan, code, words):
    if plan is not None:
        (tmp_path / "plan.yaml").write_text(plan)
    refused = zerofleet("chaos", "recipe.yaml", "--plan", "plan.yaml" if plan else "nowhere.yaml", "run.name=a")
    assert refused[0] == code and words in refused[2]
    assert not RunFolder(str(tmp_path / "runs"), "a-reference").storage.exists("job.yaml")


@pytest.mark.integration
@pytest.mark.timeout(60)
def test_a_run_that_no_fault_struck_proves_nothing(zerofleet, drive, tmp_path):
    drive("finish")
    (tmp_path / "plan.yaml").write_text("[{kind: kill, rank: 1, step: 2}]")
    code, out, _ = zerofleet("chaos", "recipe.yaml", "--plan", "plan.yaml", "run.name=a", "--json")
    facts = json.loads(out)
    assert code == 1 and (facts["run"], facts["state"], facts["faults"]) == ("a", "FINISHED", [])
    assert "kill at step 2 never struck" in facts["problems"]
    again = zerofleet("chaos", "recipe.yaml", "--plan", "plan.yaml", "run.name=a")
    assert again[0] == 2 and "run 'a-reference' exists already" in again[2]


def trial() -> Trial:
    def say(kind: str, at: float, **data) -> Event:
        return Event(kind, 1, DRIVER, 0, "running", at, data=data)

    def step(number: int, attempt: int, ended: float) -> Event:
        return Event("step", attempt, 0, number, "step", ended - 1, 1.0, {"loss": 1.0})

    attempts = tuple(AttemptRecord(n, n - 1, None, 2, 1, 0.0, "here", 1) for n in (1, 2))
    events = (say("exit", 101.7, killed=False, code=None, signal=9), say("state", 110.0, to="FINISHED"))
    steps = (step(1, 1, 101.0), step(2, 2, 104.0), step(3, 2, 105.0))
    strike = Strike(KILL, Arrival(0, 1, 2, 99), at=101.5)
    return Trial(RunFolder("/runs", "a"), (KILL,), (strike,), 1, None, 12.0, Record(attempts, events, steps, (), 6))


def test_the_table_has_a_line_per_fault_and_the_outcome(recipe):
    job = load_job(recipe)
    lines = table(trial(), 9.0, [], job).splitlines()
    assert lines[1].split() == ["kill", "step", "2", "after", "0.2", "s", "after", "2.5", "s", "0", "steps"]
    assert lines[3] == "a: FINISHED in 12.0 s with 2 attempts and 1 resumes; unbroken 9.0 s"
    assert lines[4].startswith("losses of 3 steps bitwise those of the unbroken run; every one of 24 positions")


def test_the_table_says_what_is_not_proved(recipe):
    text = table(trial(), 9.0, ["it waits"], load_job(recipe))
    assert "NOT PROVED: it waits" in text and "bitwise" not in text
