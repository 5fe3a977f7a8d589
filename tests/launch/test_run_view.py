"""Runs that torchrun trains, beside or after drivers: how they stand, and what may be asked of them."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from zerofleet.launch.drivers import driver_records
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.events import Event
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


class Torchrun:
    """Rank 0 of a torchrun: claims an attempt of run `a`, in the name of the process `pid`, and says events."""

    def __init__(self, pid: int) -> None:
        self.run = RunFolder(os.environ["ZEROFLEET_STORAGE"], "a")
        self.attempt = len(self.run.attempts()) + 1
        self.run.claim_attempt(self.attempt, None, world_size=2, zero_stage=1)
        self.change(pid=pid, process=str(ProcessId.of(pid)))

    def change(self, **changes) -> None:
        path = self.run.storage.local_path(f"attempts/{self.attempt:04d}.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def say(self, kind: str, step: int, start: float | None = None, **data) -> None:
        stream = self.run.writer("metrics" if kind == "step" else "events", self.attempt)
        stream.append(Event(kind, self.attempt, 0, step, "step", start or time.time(), data=data).to_json())
        stream.close()

    def step(self, step: int, start: float | None = None) -> None:
        self.say("step", step, start, loss=1.0, tokens=64)


@pytest.fixture
def process():
    """A process that lives until the test ends it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as found:
        yield found
        if found.poll() is None:
            found.communicate(b"\n")


@pytest.fixture
def torchrun(zerofleet, drive, process):
    """`torchrun("finish")`: after a driver with that script, torchrun trains run `a` on to step 5; without one, from the start."""

    def start(script: str | None) -> Torchrun:
        drive(script or "no_claim")
        zerofleet("submit", "recipe.yaml", "run.name=a")
        found = Torchrun(process.pid)
        found.step(5)
        return found

    return start


def state(zerofleet) -> str:
    found = json.loads(zerofleet("status", "a", "--json")[1])["state"]
    assert json.loads(zerofleet("list", "--json")[1])["state"] == found
    return found


@pytest.mark.parametrize("script", [None, "finish", "fail", "die"])
def test_what_torchrun_trains_is_its_own_whatever_a_driver_said_before(zerofleet, torchrun, process, script):
    found, num_drivers = torchrun(script), 1 if script else 0
    assert state(zerofleet) == "TORCHRUN"
    assert (
        f"started with torchrun: rank 0 of attempt {found.attempt} is process {process.pid} on "
        in zerofleet("status", "a")[1]
    )
    code, out, err = zerofleet("stop", "a")
    assert (code, out) == (2, "") and f"`kill {process.pid}` on {socket.gethostname()} makes it save and end" in err
    code, out, err = zerofleet("resume", "a", "train.steps=9")
    assert (code, out) == (2, "") and f"is trained by torchrun: `kill {process.pid}` on {socket.gethostname()}" in err
    assert len(driver_records(found.run)) == num_drivers and not found.run.requests()
    assert zerofleet("submit", "recipe.yaml", "run.name=a")[0] == 2, "its name is taken"
    found.say("stopped", 6)
    process.communicate(b"\n")
    assert state(zerofleet) == "STOPPED"
    code, out, _ = zerofleet("stop", "a")
    assert code == 0 and "is STOPPED already" in out


@pytest.mark.parametrize("script", [None, "finish", "die"])
def test_a_torchrun_that_died_is_dead_and_can_be_resumed(zerofleet, torchrun, drive, process, script):
    torchrun(script)
    process.kill()
    process.wait()
    assert state(zerofleet) == "DEAD"
    out = zerofleet("status", "a")[1]
    assert f"is process {process.pid} on {socket.gethostname()}, gone" in out and "resume a" in out
    code, _, err = zerofleet("stop", "a")
    assert code == 1 and "does not run: started with torchrun" in err and "resume a" in err
    drive("finish")
    assert zerofleet("resume", "a", "train.steps=9")[0] == 0
    assert state(zerofleet) == "FINISHED" and "driver " in zerofleet("status", "a")[1]


def test_a_driver_that_was_refused_beside_torchrun_does_not_end_the_run(zerofleet, torchrun, drive, process):
    found = torchrun("die")
    record = found.run.storage.local_path("drivers/0001.json")
    refused = {**json.loads(record.read_text()), "started_at": time.time()}
    found.run.storage.create("drivers/0002.json", json.dumps(refused).encode())
    events = found.run.writer("events", found.attempt + 1)
    data = {"from": "STARTING", "to": "FAILED", "why": "is being trained"}
    events.append(Event("state", found.attempt + 1, -1, 0, "init", time.time(), data=data).to_json())
    events.close()
    assert state(zerofleet) == "TORCHRUN" and "is being trained" not in zerofleet("status", "a")[1]
    found.say("finished", 9)
    process.communicate(b"\n")
    assert state(zerofleet) == "FINISHED"


def test_of_a_driver_that_is_alive_and_says_nothing_it_is_told_for_how_long(zerofleet, drive):
    drive("stoppable")
    zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")
    view = RunView.of(RunFolder.open("a"))
    assert view.describe_driver().endswith(", alive")
    early = view.driver.started_at - 100
    view.driver, view.progress.last_event_at = replace(view.driver, started_at=early), early + 40
    assert re.search(r", alive, silent for 6\d s$", view.describe_driver())
    assert zerofleet("stop", "a")[0] == 0


def test_torchrun_on_another_host_lives_while_it_speaks(zerofleet, torchrun):
    found = torchrun(None)
    elsewhere = {"host": "elsewhere", "process": str(replace(ProcessId.own(), boot="another"))}
    found.change(**elsewhere)
    assert state(zerofleet) == "TORCHRUN"
    found.change(**elsewhere, claimed_at=time.time() - 2000)
    found.run.storage.remove("metrics")
    found.step(5, start=time.time() - 1000)
    assert state(zerofleet) == "DEAD"


def test_an_attempt_belongs_to_the_driver_that_claimed_it(zerofleet, drive):
    drive("finish")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    view = RunView.of(RunFolder.open("a"))
    assert (view.attempt, view.torchrun, view.progress.torchrun_attempts) == (1, None, frozenset())
    claimed_before = view.attempts[0].claimed_at - 1000
    path = view.run.storage.local_path("attempts/0001.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "claimed_at": claimed_before}))
    assert RunView.of(RunFolder.open("a")).torchrun is not None, "a process that had the driver's number before it"


def test_logs_of_torchrun_say_where_they_are(zerofleet, torchrun):
    torchrun(None).run.storage.remove("logs")
    for arguments in ((), ("--rank", "1"), ("--rank", "0", "--attempt", "1"), ("-f",)):
        code, out, err = zerofleet("logs", "a", *arguments)
        assert (code, out) == (4, "")
        assert "attempt 1 was started with torchrun, whose ranks write to its terminal" in err
    assert "torchrun" not in zerofleet("logs", "a", "--rank", "1", "--attempt", "7")[2]
