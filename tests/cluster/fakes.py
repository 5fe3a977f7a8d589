"""A group without processes and a clock without time: the controller is driven one step at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from zerofleet.cluster.attempt import Stage
from zerofleet.cluster.commits import Outcome
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.controller import Controller
from zerofleet.cluster.group import Departure, Placement
from zerofleet.cluster.hooks import Hooks, Origin
from zerofleet.cluster.policy.failure import TERMS, Terms
from zerofleet.cluster.policy.sizing import Sizes
from zerofleet.cluster.spec import JobSpec, SnapshotInfo
from zerofleet.cluster.stacks import RankStack
from zerofleet.trainer.data.quarantine import Ranges, union
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.run_folder import CheckpointId

JOB = JobSpec(run="r", config_json="{}", cache_path="/cache")


def event(kind: str, attempt: int, rank: int, step: int = 0, phase: str = "step", **data) -> Event:
    return Event(kind, attempt, rank, step, phase, start=0.0, data=data)


def step(attempt: int, number: int, world_size: int = 2) -> list[Event]:
    """All ranks end a step."""
    signs = [event("phase", attempt, rank, number) for rank in range(world_size)]
    return [*signs, event("step", attempt, 0, number, loss=1.0)]


def checkpoint(attempt: int, number: int) -> Event:
    return event("checkpoint", attempt, 0, number, "save", path="")


def exit_of(attempt: int, rank: int, code: int | None = 0, signal: int | None = None, **data) -> Event:
    data = {"killed": False, "state_before": "", "oom_kills": 0, "memory_bytes": 2**30, "node": "a", "pid": 1} | data
    return event("exit", attempt, rank, phase="end", code=code, signal=signal, **data)


def error_of(attempt: int, rank: int, step: int = 0, type: str = "ValueError", message: str = "bad", **data) -> Event:
    data = {"traceback": "", "frames": ["loop.py:1 train"], "user": False} | data
    return event("error", attempt, rank, step, type=type, message=message, **data)


def ended(attempt: int, kind: str, number: int, world_size: int = 2) -> list[Event]:
    """Rank 0 says that it has finished or stopped; all ranks exit."""
    return [event(kind, attempt, 0, number, "end"), *[exit_of(attempt, rank) for rank in range(world_size)]]


class Clock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0


Script = Callable[[int], list[list[Event]]]
"""What the ranks of an attempt say, batch by batch."""


class FakeGroup:
    """Ranks that say what a script tells them, and nothing after it."""

    def __init__(self, clock: Clock, train: Script, world_size: int = 2) -> None:
        self.num_nodes, self._ranks_per_node, self._clock, self._train = 1, world_size, clock, train
        self.is_whole = True
        self.leaving: list[Departure] = []
        self.released: list[Departure] = []
        self.replaceable: list[str] = []
        """Names of nodes whose place others can take."""
        self.left_out: list[str] = []
        self.names = ["a"]
        """The nodes that the run has or could have."""
        self.placements: list[Placement] = [Placement()]
        """What `place` answers, in order; the last one again and again."""
        self.started: list[tuple[str, int, int]] = []
        """(log name, attempt, ranks) of everything that was forked."""
        self.memories: list[CheckpointId | None] = []
        """The snapshots that each of those started from."""
        self.replicas: list[tuple[CheckpointId, bool]] = []
        """The steps that the buddies have, or will not get."""
        self.controls: list[str] = []
        self.heard_controls: list[Control] = []
        """What rank 0 was told of its saves."""
        self.on_control: dict[str, list[list[Event]]] = {}
        """What the ranks say when they hear a request."""
        self.on_kill: list[Event] = []
        self.infos: list[SnapshotInfo] = []
        """What the agents hold."""
        self.persisted: list[CheckpointId] = []
        self.on_stacks: dict[int, RankStack] = {}
        """What the ranks are doing, when somebody looks."""
        self.num_kills = 0
        self.check: Script = lambda attempt: [[exit_of(attempt, rank) for rank in range(self.world_size)]]
        self.export: Script = lambda attempt: [[event("export", attempt, 0, path="x"), exit_of(attempt, 0)]]
        self._batches: list[list[Event]] = []

    def departing(self) -> list[Departure]:
        return self.leaving

    def leave_out(self, names: Sequence[str]) -> list[str]:
        left = [name for name in names if name in self.replaceable]
        self.left_out += left
        return left

    def release(self, departures: Sequence[Departure]) -> None:
        self.released += departures
        self.leaving = []

    def place(self, job: JobSpec | None, wait_s: float) -> Placement:
        if job is None:
            return Placement("the data is not prepared yet")
        self._clock.now += wait_s
        return self.placements.pop(0) if len(self.placements) > 1 else self.placements[0]

    @property
    def world_size(self) -> int:
        return self.num_nodes * self._ranks_per_node

    def resize(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes

    def available(self) -> list[str]:
        return self.names

    def start(
        self, job: JobSpec, attempt: int, num_ranks: int, log_name: str, memory: CheckpointId | None = None
    ) -> None:
        self.memories.append(memory)
        self.started.append((log_name, attempt, num_ranks))
        script = {"check": self.check, "rank": self._train, "export": self.export}[log_name]
        self._batches = list(script(attempt))

    def poll(self, timeout_s: float) -> list[Event]:
        if self._batches:
            return self._batches.pop(0)
        self._clock.now += timeout_s
        return []

    def control(self, control: Control) -> None:
        if control.settled_step:
            self.heard_controls.append(control)
            return
        self.controls.append(control.action)
        self._batches += self.on_control.get(control.action, [])

    def kill(self) -> list[Event]:
        self.num_kills += 1
        self._batches = []
        events, self.on_kill = self.on_kill, []
        return events

    def snapshots(self) -> list[SnapshotInfo]:
        return self.infos

    def stacks(self) -> dict[int, RankStack]:
        return self.on_stacks

    def replicated(self, checkpoint: CheckpointId, is_whole: bool) -> None:
        self.replicas.append((checkpoint, is_whole))

    def persist(self, checkpoint: CheckpointId) -> None:
        self.persisted.append(checkpoint)

    def close(self, keep_snapshots: bool = False) -> None:
        pass


@dataclass(frozen=True)
class FakeSelection:
    checkpoint: CheckpointId | None = None
    skipped: tuple[tuple[CheckpointId, str], ...] = ()
    found: int = 0
    in_memory: bool = False


@dataclass
class Harness:
    """A controller with its surroundings; what they were asked is kept."""

    group: FakeGroup
    clock: Clock
    config: ClusterConfig = field(default_factory=ClusterConfig)
    stages: tuple[Stage, ...] = (Stage.TRAIN,)
    sizes: Sizes | None = None
    last_attempt: int = 0
    events: list[Event] = field(default_factory=list)
    claims: list[tuple[int, Origin | None]] = field(default_factory=list)
    world_sizes: list[int] = field(default_factory=list)
    """Of each claim."""
    quarantines: list[list[list[int]]] = field(default_factory=list)
    """What each claim was to leave out."""
    terms: Terms = TERMS
    """Of the first attempt."""
    micro_batch_sizes: list[int] = field(default_factory=list)
    """Of each claim."""
    quarantined: Ranges = ()
    """What the run left out before."""
    excluded: list[frozenset[Origin]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    """What has come of saves."""
    written: list[Event] = field(default_factory=list)
    selections: list[FakeSelection] = field(default_factory=lambda: [FakeSelection()])
    requests: list[str] = field(default_factory=list)
    prepare_error: Exception | None = None
    claim_error: UserError | None = None
    is_undisturbed: bool = False
    """Whether nothing is committed at the moment."""

    def __post_init__(self) -> None:
        hooks = Hooks(
            prepare=self._prepare,
            select=self._select,
            undisturbed=self._undisturbed,
            claim=self._claim,
            written=self._take_written,
            outcomes=self._take_outcomes,
            emit=self.events.append,
            requests=self._take_requests,
        )
        self.controller = Controller(
            self.group,
            hooks,
            self.config,
            sizes=self.sizes or Sizes(1, 1, 2, 32, 1, 30.0, self.config.placement_timeout_s),
            num_steps=1000,
            terms=self.terms,
            last_attempt=self.last_attempt,
            stages=self.stages,
        )

    def run(self, max_steps: int = 10_000) -> Controller:
        """To a final state."""
        for _ in range(max_steps):
            if self.controller.state.is_final:
                return self.controller
            self.controller.step(self.clock.now)
        raise AssertionError(f"still {self.controller.state} after {max_steps} steps")

    def run_until(self, state: str) -> None:
        for _ in range(1000):
            if self.controller.state == state:
                return
            self.controller.step(self.clock.now)
        raise AssertionError(f"never {state}: {self.states()}")

    def states(self) -> list[str]:
        return [event.data["to"] for event in self.said("state")]

    def said(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    def _prepare(self, wait_s: float) -> JobSpec | None:
        if self.prepare_error is not None:
            raise self.prepare_error
        return JOB

    def _take_written(self, event: Event) -> None:
        assert event in self.events, (
            "what comes with a rank's file is written down before its checkpoint can be committed"
        )
        self.written.append(event)

    def _take_outcomes(self) -> list[Outcome]:
        taken, self.outcomes = self.outcomes, []
        return taken

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        self.is_undisturbed = True
        yield
        self.is_undisturbed = False

    def _select(self, excluded: frozenset[Origin], snapshots: list[SnapshotInfo]) -> FakeSelection:
        self.excluded.append(excluded)
        return self.selections.pop(0) if len(self.selections) > 1 else self.selections[0]

    def _claim(self, attempt: int, start: Origin | None, world_size: int, terms: Terms) -> Terms:
        assert self.is_undisturbed, "a commit in between would be fenced off"
        if self.claim_error is not None:
            raise self.claim_error
        self.claims.append((attempt, start))
        self.world_sizes.append(world_size)
        self.quarantines.append(union(terms.quarantine))
        self.micro_batch_sizes.append(terms.micro_batch_size)
        return replace(terms, quarantine=union(terms.quarantine, self.quarantined))

    def _take_requests(self) -> list[str]:
        taken, self.requests = self.requests, []
        return taken


def harness(train: Script, world_size: int = 2, **fields) -> Harness:
    clock = Clock()
    return Harness(FakeGroup(clock, train, world_size), clock, **fields)
