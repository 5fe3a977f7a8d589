"""A simulated run: failures, steps and saves are moments on a clock that is set forward; the controller and its policies decide what becomes of them.

Real are the controller, the heartbeat's limits, verdicts, decisions on failures and sizes, buddies, the cadence of saves, the choice of what to
start from, attempts and their fencing, the recorder and the goodput ledger. Every rank is heard in the first steps of an attempt and around
every look afterwards; in between only rank 0's results are told.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from zerofleet.cluster.attempt import Stage
from zerofleet.cluster.commits import Outcome
from zerofleet.cluster.controller import WAIT_S, Controller
from zerofleet.cluster.goodput.history import History, end_of
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.cluster.hooks import Hooks, Origin
from zerofleet.cluster.policy.failure import Terms
from zerofleet.cluster.simulation.costs import Tier
from zerofleet.cluster.simulation.group import ECHO
from zerofleet.cluster.simulation.nodes import SimulatedNodes
from zerofleet.cluster.simulation.ranks import SimulatedRanks
from zerofleet.cluster.simulation.scenario import Scenario
from zerofleet.cluster.spec import JobSpec, SnapshotInfo
from zerofleet.cluster.state import State
from zerofleet.cluster.verdict import is_failure
from zerofleet.trainer.checkpoint.select import Selection, newest_snapshot
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.driver_records import DriverRecord
from zerofleet.trainer.events import DRIVER, Control, Event
from zerofleet.trainer.recorder import Recorder
from zerofleet.trainer.run_folder import AttemptRecord, CheckpointId, RunFolder

EPOCH = 1.0e9
"""Unix seconds at which simulated runs begin."""
LOOK_S = 3600.0
NUM_STEPS = 10**9
"""The run is cut off by its days."""
_EXIT: dict[str, Any] = {"killed": False, "state_before": "", "oom_kills": 0, "memory_bytes": 0, "node": "", "pid": 1}


class SimulatedRun:
    """`now` is its clock, in seconds; by `clock` the controller is timed."""

    def __init__(self, scenario: Scenario, folder: Path, clock: Callable[[], float] = time.process_time) -> None:
        self.scenario, self._clock, self.now = scenario, clock, 0.0
        self.end_s = scenario.days * 24 * 3600.0
        self._draw = random.Random(scenario.seed)
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._is_looking = False
        self._looked_at = 0.0
        self.nodes = SimulatedNodes(scenario, lambda: self.now, self._begin, self._obey, clock)
        self.folder = RunFolder(str(folder), "simulated")
        self._recorder = Recorder(self.folder, 1, record_keeping_config(folder))
        self.ranks: SimulatedRanks | None = None
        self.attempts: list[AttemptRecord] = []
        self.events: list[Event] = []
        self.results: list[Event] = []
        self._told_failures: Counter[int] = Counter()
        self._outcomes: list[Outcome] = []
        self._stored: list[tuple[CheckpointId, int]] = []
        """Durable checkpoints and their ranks."""
        self.saved_at: list[float] = []
        self.failures: Counter[str] = Counter()
        self.tiers: Counter[str] = Counter()
        self.looks_s: dict[str, list[float]] = {"all ranks": [], "other": [], "recovering": []}
        self.controller = Controller(
            self.nodes,
            self._hooks(),
            scenario.cluster_config,
            sizes=scenario.sizes,
            num_steps=NUM_STEPS,
            stages=(Stage.TRAIN,),
        )

    def run(self) -> Ledger:
        """To the end of its days, or of the run. Returns where its time went."""
        self._look()
        self.at(self.scenario.rates.next_s(self.scenario.gpus, self._draw), self._fail)
        while self._moments and not self.controller.state.is_final:
            at, _, act = heapq.heappop(self._moments)
            if at > self.end_s:
                break
            self.now = max(self.now, at)
            act()
        if not self.controller.state.is_final:
            self.now = self.end_s
        self._recorder.close()
        events = tuple(sorted(self.events, key=end_of))
        driver = DriverRecord(1, socket.gethostname(), os.getpid(), EPOCH, ())
        return Ledger.of(History(tuple(self.attempts), (driver,), events, tuple(self.results), EPOCH + self.now))

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        """`act` so many seconds from now."""
        heapq.heappush(self._moments, (self.now + seconds, next(self._numbers), act))

    @property
    def unix(self) -> float:
        return EPOCH + self.now

    # -- the controller ----------------------------------------------------------------------------------------------
    def _hooks(self) -> Hooks:
        return Hooks(
            prepare=lambda wait_s: JobSpec(run="simulated", config_json="{}", cache_path=""),
            select=self._select,
            undisturbed=contextlib.nullcontext,
            claim=self._claim,
            written=lambda event: None,
            outcomes=self._take_outcomes,
            emit=self._emit,
            requests=list,
        )

    def hear(self, events: list[Event], is_of_all: bool = False) -> None:
        """The controller takes these in, and does what it does. `is_of_all`: they are the step of every rank."""
        before, self._looked_at = self.controller.state, self.now
        self.nodes.say(events)
        began = self._clock()
        self.controller.step(self.now)
        took_s = self._clock() - began
        kind = "recovering" if before is State.RECOVERING else "all ranks" if is_of_all else "other"
        self.looks_s[kind].append(took_s)
        waits = self.controller.state not in (State.STARTING, State.RUNNING) or bool(
            self.ranks and self.ranks.is_broken
        )
        if waits and not self._is_looking and not self.controller.state.is_final:
            self._is_looking = True
            self.at(WAIT_S, self._look)

    def _look(self) -> None:
        self._is_looking = False
        self.hear([])

    def _take_outcomes(self) -> list[Outcome]:
        found, self._outcomes = self._outcomes, []
        return found

    def _emit(self, event: Event) -> None:
        if event.rank == DRIVER:  # the controller's own clock is the machine's
            event = replace(event, start=self.unix - event.duration_s)
        self._recorder.on_event(event)
        if event.kind == "step" or (event.kind == "phase" and event.rank):
            return
        if event.kind in ("exit", "error"):  # of thousands that say the same the first is enough for the ledger
            self._told_failures[event.attempt] += is_failure(event)
            if self._told_failures[event.attempt] > 1 or not is_failure(event):
                return
        self.events.append(event)

    def _claim(self, number: int, start: Origin | None, world_size: int, terms: Terms) -> Terms:
        checkpoint, in_memory = (start.checkpoint, start.in_memory) if start else (None, False)
        stage = self.scenario.zero_stage
        record = self.folder.claim_attempt(number, checkpoint, world_size, stage, None, in_memory, terms.quarantine)
        self.attempts.append(replace(record, claimed_at=self.unix))
        return terms

    def _select(self, excluded: frozenset[Origin], snapshots: list[SnapshotInfo]) -> Selection:
        """As the driver does: storage is looked at first, and takes its time."""
        attempts = self.folder.attempts()
        counting = [entry for entry in reversed(self._stored) if not self.folder.fenced(entry[0], attempts)]
        stored = counting[0][0] if counting else None
        if counting:
            self.now += self.scenario.costs.select_s(counting[0][1])
        newest = newest_snapshot(self.folder, [info.meta for info in snapshots])
        if newest is None or (stored is not None and stored.step > newest.step):
            return Selection(stored, (), len(counting))
        return Selection(newest, (), max(1, len(counting)), in_memory=True)

    # -- the ranks ---------------------------------------------------------------------------------------------------
    def _begin(self, attempt: int, memory: Tier | None) -> None:
        """The ranks of an attempt are forked."""
        record = self.attempts[-1]
        tier: Tier = memory or ("storage" if record.checkpoint_attempt is not None else "beginning")
        if attempt > 1:
            self.tiers[tier] += 1
        self.ranks = SimulatedRanks(self, record, tier)

    def _obey(self, control: Control) -> None:
        if self.ranks is not None:
            self.ranks.obey(control)

    def durable(self, checkpoint: CheckpointId, ranks: int, num_bytes: int, seconds: float) -> None:
        """A save has become whole in storage. One that a later attempt has fenced off does not count."""
        if self.folder.fenced(checkpoint):
            return
        self._stored.append((checkpoint, ranks))
        self.saved_at.append(self.now)
        self._outcomes.append(Outcome(checkpoint, True, num_bytes=num_bytes, seconds=seconds))
        if self.ranks is not None:
            self.ranks.cadence.settled(checkpoint.step, self.now)
        is_whole = self.nodes.num_nodes == self.scenario.nodes and self.controller.state is State.RUNNING
        if not is_whole or self.now - self._looked_at >= LOOK_S:
            self.hear(self.ranks.news() if self.ranks else [])

    # -- what goes wrong ---------------------------------------------------------------------------------------------
    def _fail(self) -> None:
        """One failure, and the time of the next."""
        scenario, draw = self.scenario, self._draw
        self.at(scenario.rates.next_s(scenario.gpus, draw), self._fail)
        kind, victim = scenario.rates.kind(draw), draw.randrange(self.nodes.num_nodes)
        rank = victim * scenario.ranks_per_node + draw.randrange(scenario.ranks_per_node)
        self.failures[kind] += 1
        if kind in ("node", "rack"):
            return self._lose(
                self.nodes.same_rack(victim) if kind == "rack" and victim in self.nodes.names else [victim]
            )
        if self.ranks is None or self.ranks.is_broken:
            return
        self.ranks.is_broken = True
        if kind == "hang":
            self.nodes.hang(rank)
            return self._watch()
        exit_ = Event(
            "exit",
            self.ranks.attempt,
            rank,
            self.ranks.step,
            "end",
            self.unix,
            0.0,
            {**_EXIT, "code": None, "signal": 6},
        )
        self.at(scenario.costs.rank_notice_s, lambda: self._break([exit_], rank))

    def _watch(self) -> None:
        if not self._is_looking:
            self._is_looking = True
            self.at(WAIT_S, self._look)

    def _lose(self, victims: list[int]) -> None:
        lost = self.nodes.lose(victims)
        for _, rack in lost:
            self.at(self.scenario.costs.repair_s, lambda rack=rack: self.nodes.repaired(rack))  # type: ignore[misc]
        if (
            not lost
            or self.ranks is None
            or self.controller.state not in (State.STARTING, State.RUNNING, State.RESIZING)
        ):
            return
        for number in self.ranks.saves_in_flight:  # what the node has not written is lost
            number.cancel()
        self.ranks.is_broken = True
        names = [name for name, _ in lost]

        def notice() -> None:
            data = [{"node": name, "message": "its agent does not answer"} for name in names]
            self._break([Event("node_lost", 0, DRIVER, 0, "end", self.unix, data=each) for each in data], None)

        self.at(self.scenario.costs.node_notice_s, notice)

    def _break(self, causes: list[Event], rank: int | None) -> None:
        """All other ranks lose their connections; the cause is heard last."""
        ranks = self.ranks
        if ranks is None or not ranks.is_current:
            return
        others = (number for number in range(ranks.world_size) if number != rank)
        echoes = [Event("error", ranks.attempt, number, ranks.step, "end", self.unix, 0.0, ECHO) for number in others]
        self.nodes.ends = ranks.exits(_EXIT)
        self.hear([*ranks.news(), *echoes, *causes])


def record_keeping_config(folder: Path) -> TrainConfig:
    """Of a run that does not run: only where it keeps its records matters."""
    sections = {
        "run": {"name": "simulated", "storage": str(folder)},
        "model": {"config": {"model_type": "llama"}},
        "data": {"files": ["none"], "sequence_length": 8},
        "train": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
    }
    return TrainConfig.model_validate(sections)
