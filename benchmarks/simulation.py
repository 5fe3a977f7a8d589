"""A run of which the controller is real and nothing else: its ranks say what a benchmark or a test has them say."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zerofleet.cluster.attempt import Stage
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.controller import Controller
from zerofleet.cluster.hooks import Hooks, Origin
from zerofleet.cluster.policy.failure import Terms
from zerofleet.cluster.policy.sizing import Sizes
from zerofleet.cluster.simulation.group import ECHO, SimulatedGroup
from zerofleet.cluster.simulation.run import record_keeping_config
from zerofleet.cluster.spec import JobSpec
from zerofleet.cluster.state import State
from zerofleet.trainer.checkpoint.select import Selection
from zerofleet.trainer.events import Event
from zerofleet.trainer.recorder import Recorder
from zerofleet.trainer.run_folder import RunFolder

RANKS_PER_NODE = 8
STEP_S = 1.0


class Simulation:
    """One run whose ranks have begun to train. `now` is its clock, in seconds; by `clock` it is timed."""

    def __init__(self, num_ranks: int, folder: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.num_ranks, self.now, self.step_number = num_ranks, 1000.0, 0
        self.group = SimulatedGroup(num_ranks, RANKS_PER_NODE, clock)
        run = RunFolder(str(folder), "simulated")
        self.recorder = Recorder(run, 1, record_keeping_config(folder))
        hooks = Hooks(
            prepare=lambda wait_s: JobSpec(run="simulated", config_json="{}", cache_path=""),
            select=lambda excluded, infos: Selection(None, (), 0),
            undisturbed=contextlib.nullcontext,
            claim=self._claim,
            written=lambda event: None,
            outcomes=list,
            emit=self._emit,
            requests=list,
        )
        cluster = ClusterConfig(nodes=num_ranks // RANKS_PER_NODE, ranks_per_node=RANKS_PER_NODE, max_failures=100)
        sizes = Sizes(1, cluster.nodes, RANKS_PER_NODE, num_ranks, 1, grace_s=30.0, placement_timeout_s=120.0)
        self.controller = Controller(self.group, hooks, cluster, sizes=sizes, num_steps=10**6, stages=(Stage.TRAIN,))
        self.attempt = 0
        self.verdicts: list[str] = []
        self.reach(State.STARTING)
        self.hear("phase", phase="init", node="node")
        self.train()

    def _claim(self, attempt: int, start: Origin | None, world_size: int, terms: Terms) -> Terms:
        self.attempt = attempt
        return terms

    def _emit(self, event: Event) -> None:
        self.recorder.on_event(event)
        if event.kind == "verdict":
            self.verdicts.append(event.data["sentence"])

    def event(self, kind: str, rank: int, phase: str = "step", duration_s: float = 0.0, **data: Any) -> Event:
        return Event(kind, self.attempt, rank, self.step_number, phase, self.now - duration_s, duration_s, data)

    def hear(self, kind: str, **fields: Any) -> float:
        """Every rank says so; the seconds in which the controller takes it in, unpickling left out."""
        self.group.say([self.event(kind, rank, **fields) for rank in range(self.num_ranks)])
        return self.step() - self.group.unpickle_s

    def train(self) -> float:
        """Every rank ends a step."""
        self.step_number += 1
        self.now += STEP_S
        return self.hear("phase", duration_s=STEP_S, own_s=0.5)

    def step(self) -> float:
        began = self._clock()
        self.controller.step(self.now)
        return self._clock() - began

    def reach(self, state: State) -> None:
        while self.controller.state != state:
            assert not self.controller.state.is_final, self.controller.why
            self.step()

    def all_exit(self) -> list[Event]:
        return [self._exit(rank, signal=None, code=1) for rank in range(self.num_ranks)]

    def one_fails(self) -> list[Event]:
        """The cause is heard last."""
        echoes = [self.event("error", rank, **ECHO) for rank in range(1, self.num_ranks)]
        return [*echoes, self._exit(0, signal=9, code=None)]

    def _exit(self, rank: int, **data: Any) -> Event:
        more: dict[str, Any] = {
            "killed": False,
            "state_before": "",
            "oom_kills": 0,
            "memory_bytes": 2**30,
            "node": "node",
            "pid": 1,
        }
        return self.event("exit", rank, "end", **more, **data)

    def verdict_s(self, events: list[Event]) -> float:
        """The attempt ends by these events; the seconds of the judging step. The next attempt trains."""
        self.group.say(events)
        while self.controller.state != State.RECOVERING:
            self.now += 0.5
            self.step()
        seconds = self.step()
        self.reach(State.STARTING)
        self.train()
        self.reach(State.RUNNING)
        return seconds

    def hang(self) -> None:
        """Nobody says anything any more; rank 7 computes, the others wait."""
        self.group.hang(busy_rank=7)
