"""A driver without Ray: claims the run and writes the events of a script. `FAKE_DRIVER` names the script.

Run as `python -m tests.launch.fake_driver STORAGE RUN [--override key=value ...]`, like the real one.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time

from zerofleet.launch.drivers import driver_records
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import CheckpointId, RunFolder


class Fake:
    def __init__(self, run: RunFolder, overrides: list[str]) -> None:
        self.run, self.number = run, max(len(driver_records(run)), len(run.attempts())) + 1
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": str(ProcessId.own()),
            "started_at": time.time(),
            "overrides": overrides,
        }
        run.storage.create(f"drivers/{self.number:04d}.json", json.dumps(record).encode())
        self.events, self.metrics = run.writer("events", self.number), run.writer("metrics", self.number)
        self.last_request = max((number for number, _ in run.requests()), default=0)

    def say(self, kind: str, step: int = 0, **data) -> None:
        writer = self.metrics if kind in ("step", "eval") else self.events
        writer.append(Event(kind, self.number, DRIVER, step, "step", time.time(), data=data).to_json())

    def state(self, to: str, why: str = "") -> None:
        self.say("state", **{"from": "", "to": to, "why": why})

    def step(self, number: int) -> None:
        self.say("step", number, loss=9.0 - number, tokens=64, mfu=0.3)

    def checkpoint(self, step: int) -> None:
        self.run.storage.create(CheckpointId(step, self.number).manifest, b"{}")
        self.say("checkpoint", step, path="", bytes=0)

    def is_stop_asked(self) -> bool:
        return any(request["action"] == "stop" for _, request in self.run.requests(self.last_request))


def finish(fake: Fake) -> int:
    """Three steps to the end."""
    fake.state("PREPARING")
    fake.run.claim_attempt(fake.number, None, world_size=2, zero_stage=1)
    fake.say("prepare", stage="tokenize", fraction=1.0, detail="12 MB")
    fake.state("RUNNING")
    fake.say("eval", 0, loss=9.5, tokens=10)
    for number in (1, 2, 3):
        fake.step(number)
    fake.say("eval", 3, loss=6.5, tokens=10)
    fake.checkpoint(3)
    fake.say("export", 3, path="/somewhere/export", dtype="fp32")
    fake.state("FINISHED")
    return 0


def die(fake: Fake) -> int:
    """kill -9 in the middle."""
    fake.run.claim_attempt(fake.number, None, world_size=2, zero_stage=1)
    fake.state("RUNNING")
    fake.step(1)
    fake.checkpoint(1)
    sys.stderr.write("the last words of the driver\n")
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def fail(fake: Fake) -> int:
    fake.state("PREPARING")
    fake.state("RUNNING")
    fake.say("verdict", **{"class": "node", "action": "stop", "sentence": "rank 1 was killed"})
    fake.state("FAILED", "rank 1 was killed. Stopping: three times in a row")
    return 1


def rank_user_error(fake: Fake) -> int:
    """A mistake that only ranks see: the attempt was claimed."""
    fake.run.claim_attempt(fake.number, None, world_size=2, zero_stage=1)
    return user_error(fake)


def recover(fake: Fake) -> int:
    """Steps 2 and 3 are done again by a second attempt."""
    fake.state("PREPARING")
    fake.state("PLACING")
    fake.run.claim_attempt(1, None, world_size=2, zero_stage=1)
    fake.state("STARTING")
    for number in (1, 2, 3):
        fake.step(number)
    fake.say("exit", 3, killed=False, code=None, signal=9)
    fake.state("RECOVERING")
    fake.say("verdict", **{"class": "node", "action": "retry", "sentence": "rank 1 was killed"})
    fake.run.claim_attempt(2, CheckpointId(1, 1), world_size=2, zero_stage=1, from_memory=True)
    fake.number = 2
    fake.state("STARTING")
    for number in (2, 3):
        fake.step(number)
    fake.state("FINISHED")
    return 0


def user_error(fake: Fake) -> int:
    fake.state("PREPARING")
    fake.say("error", type="UserError", message="data.files matches nothing", traceback="", user=True)
    fake.state("FAILED", "data.files matches nothing")
    return 2


def user_error_after_steps(fake: Fake) -> int:
    """Whatever the user did wrong, there is something to lose."""
    fake.run.claim_attempt(fake.number, None, world_size=2, zero_stage=1)
    fake.step(1)
    return user_error(fake)


def tell_environment(fake: Fake) -> int:
    """Its environment, to the file that TOLD names."""
    with open(os.environ["TOLD"], "w") as file:
        json.dump(dict(os.environ), file)
    fake.state("FINISHED")
    return 0


def no_claim(fake: Fake) -> int:
    raise AssertionError("never called")


def stoppable(fake: Fake) -> int:
    """Runs until it is asked to stop, then saves."""
    fake.state("RUNNING")
    number, ends_at = 0, time.monotonic() + 60
    while not fake.is_stop_asked():
        assert time.monotonic() < ends_at, "nobody stopped the fake driver"
        number += 1
        fake.step(number)
        time.sleep(0.05)
    fake.state("DRAINING")
    fake.checkpoint(number)
    fake.state("STOPPED", "a stop was asked for")
    return 0


def deaf(fake: Fake) -> int:
    """Does not hear a stop for 60 s."""
    fake.state("RUNNING")
    time.sleep(60)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("storage")
    parser.add_argument("run")
    parser.add_argument("--override", action="append", default=[])
    options = parser.parse_args()
    script = globals()[os.environ["FAKE_DRIVER"]]
    if script is no_claim:
        sys.stderr.write(f"error: {UserError('somebody else drives it')}\n")
        return 2
    return script(Fake(RunFolder(options.storage, options.run), options.override))


if __name__ == "__main__":
    sys.exit(main())
