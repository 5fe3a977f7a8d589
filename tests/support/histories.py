"""A run's history, scripted: each call says what happens next and moves the clock on."""

from __future__ import annotations

from typing import Any

from zerofleet.cluster.goodput.history import History, end_of
from zerofleet.trainer.driver_records import DriverRecord
from zerofleet.trainer.events import DRIVER, Event
from zerofleet.trainer.run_folder import AttemptRecord

BEGAN = 1000.0


class Story:
    """`at` is the clock, in Unix seconds."""

    def __init__(self, world_size: int = 2, nodes: tuple[str, ...] = ("n0",)) -> None:
        self.world_size, self.nodes, self.at = world_size, nodes, BEGAN
        self.attempts: list[AttemptRecord] = []
        self.drivers: list[DriverRecord] = []
        self.events: list[Event] = []
        self.results: list[Event] = []
        self.step = 0

    @property
    def attempt(self) -> int:
        return len(self.attempts)

    def say(
        self, kind: str, rank: int = DRIVER, phase: str = "running", attempt: int | None = None, **data: Any
    ) -> None:
        number = max(1, self.attempt) if attempt is None else attempt
        self.events.append(Event(kind, number, rank, self.step, phase, self.at, data=data))

    def state(self, to: str, then_s: float = 0.0, why: str = "", attempt: int | None = None) -> Story:
        self.say("state", attempt=attempt, **{"from": "", "to": to, "why": why})
        self.at += then_s
        return self

    def driver(self, prepare_s: float = 2.0, queue_s: float = 3.0) -> Story:
        number = len(self.drivers) + 1
        self.drivers.append(DriverRecord(number, "here", number, self.at, ()))
        self.at += 0.5
        self.state("PREPARING", prepare_s, attempt=self.attempt + 1).state("PLACING", queue_s, attempt=self.attempt + 1)
        return self

    def start(self, start_s: float = 4.0, from_step: int | None = None) -> Story:
        """A new attempt of the newest driver; `start_s` to its first result."""
        self.step = self.step if from_step is None else from_step
        record = AttemptRecord(
            self.attempt + 1, self.step, None, self.world_size, 1, self.at, "here", len(self.drivers)
        )
        self.attempts.append(record)
        self.state("STARTING")
        for rank in range(self.world_size):
            self.say("phase", rank, "init", pid=rank, node=self.nodes[rank * len(self.nodes) // self.world_size])
        self.at += start_s
        return self

    def steps(self, count: int, seconds: float = 1.0, gap_s: float = 0.0, **data: Any) -> Story:
        """`gap_s` lies before each."""
        for _ in range(count):
            self.step += 1
            self.at += gap_s
            known = {"loss": 9.0 - self.step / 100, "tokens": 512, "learning_rate": 1e-3, "mfu": 0.4, **data}
            self.results.append(Event("step", self.attempt, 0, self.step, "step", self.at, seconds, known))
            self.at += seconds
        return self

    def eval(self, seconds: float) -> Story:
        self.results.append(Event("eval", self.attempt, 0, self.step, "eval", self.at, seconds, {"loss": 8.0}))
        self.at += seconds
        return self

    def kill(self, rank: int = 1, work_s: float = 0.25, notice_s: float = 0.5, mend_s: float = 0.125) -> Story:
        """`work_s` into the next step."""
        self.at += work_s
        self.say("exit", rank, "end", killed=False, code=None, signal=9)
        self.at += notice_s
        return self.fail("node", f"rank {rank} was killed (SIGKILL) by something outside the run", rank, mend_s)

    def fail(
        self, kind: str, sentence: str, rank: int | None = 1, mend_s: float = 0.125, action: str = "retry"
    ) -> Story:
        self.state("RECOVERING", mend_s)
        node = None if rank is None else self.nodes[rank * len(self.nodes) // self.world_size]
        self.say(
            "verdict", sentence=f"{sentence}. Trying again", rank=rank, node=node, **{"class": kind, "action": action}
        )
        return self

    def ranks(self, own_s: list[float], data_s: list[float], stall_s: list[float], steps: int, **more: Any) -> Story:
        """What the recorder sums up: per step."""
        columns = {"own_s": own_s, "data_s": data_s, "stall_s": stall_s}
        sums = {name: [value * steps for value in values] for name, values in columns.items()}
        self.say("ranks", phase="step", ranks=list(range(len(own_s))), steps=[steps] * len(own_s), **sums, **more)
        return self

    def finish(self, save_s: float = 1.0, end_s: float = 2.0) -> Story:
        self.say("phase", 0, "save")
        self.at += save_s
        self.say("phase", 0, "end")
        self.say("finished", 0, "end")
        self.at += end_s
        return self.state("FINISHED")

    def history(self, now: float | None = None) -> History:
        events = tuple(sorted(self.events, key=end_of))
        return History(tuple(self.attempts), tuple(self.drivers), events, tuple(self.results), now)
