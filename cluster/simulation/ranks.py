"""The ranks of one simulated attempt, all in step: load, step, snapshot, save, stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zerofleet.cluster.policy.heartbeat import POLL_S, WARM_UP_STEPS
from zerofleet.cluster.policy.stragglers import WINDOW_STEPS
from zerofleet.cluster.simulation.costs import Tier
from zerofleet.trainer.checkpoint.cadence import Cadence
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.run_folder import AttemptRecord, CheckpointId

if TYPE_CHECKING:
    from zerofleet.cluster.simulation.run import SimulatedRun


@dataclass
class _Save:
    """On its way to storage."""

    is_lost: bool = False

    def cancel(self) -> None:
        self.is_lost = True


class SimulatedRanks:
    """`step` is the newest that is done."""

    def __init__(self, run: SimulatedRun, record: AttemptRecord, tier: Tier) -> None:
        self._run, self._record, scenario = run, record, run.scenario
        self.attempt, self.step, self.world_size = record.attempt, record.start_step, record.world_size
        self._nodes = self.world_size // scenario.ranks_per_node
        self._state = scenario.state(self._nodes)
        self._rank_bytes = self._state.checkpoint_bytes / self.world_size
        self._step_s = scenario.step_s(self._nodes)
        self.is_broken = False
        """Something has happened to them: they do not go on."""
        self._stops = False
        self._news: list[Event] = []
        self._quiet_s = 0.0
        """Silence of all ranks but 0 as the controller counts it."""
        self._num_heard_whole = WINDOW_STEPS if record.attempt == 1 else WARM_UP_STEPS + 1
        self.saves_in_flight: list[_Save] = []
        self.cadence = Cadence(
            scenario.checkpoint,
            failures=record.attempt - 1,
            observed_s=run.now,
            has_buddy=self._nodes > 1,
            has_room=True,
        )
        self.cadence.durable_step = self.cadence.snapshot_step = self.step
        costs, fragments = scenario.costs, scenario.fragments(self.world_size)
        loading_s = costs.restore_s(tier, self.world_size, scenario.ranks_per_node, fragments, self._rank_bytes)
        run.at(costs.begin_s(self.world_size) + loading_s, self._loaded)
        run.at(scenario.cluster_config.start_timeout_s + 1.0, self._show_that_it_is_late)

    @property
    def is_current(self) -> bool:
        return self._run.ranks is self

    def _event(self, kind: str, rank: int, phase: str, duration_s: float = 0.0, **data: Any) -> Event:
        return Event(kind, self.attempt, rank, self.step, phase, self._run.unix - duration_s, duration_s, data)

    def news(self) -> list[Event]:
        """What rank 0 has to tell; once."""
        news, self._news = self._news, []
        self._quiet_s += POLL_S
        return news

    # -- start -------------------------------------------------------------------------------------------------------
    def _loaded(self) -> None:
        if not self.is_current or self.is_broken:
            return
        names = self._run.nodes.names
        per_node = self._run.scenario.ranks_per_node
        self._run.hear(
            [self._event("phase", r, "load", node=names.get(r // per_node, "")) for r in range(self.world_size)]
        )
        if self.is_current and not self.is_broken:
            self._next(0.0)

    def _show_that_it_is_late(self) -> None:
        if self.is_current and self.step == self._record.start_step:
            self.is_broken = True
            self._run.hear([])

    # -- steps -------------------------------------------------------------------------------------------------------
    def _next(self, stall_s: float) -> None:
        """The next step begins when a snapshot lets it."""
        if self._stops:
            return self._run.at(stall_s, self._stopped)
        action = self.cadence.due(self.step + 1, self._run.now)
        slower = self._run.scenario.costs.slowdown if self.cadence.in_flight is not None else 1.0
        seconds = self._step_s * slower
        self._run.at(stall_s + seconds, lambda: self._stepped(action, seconds, stall_s))

    def _stepped(self, action: str, seconds: float, stall_s: float) -> None:
        if not self.is_current or self.is_broken:
            return
        self.step += 1
        self.cadence.stepped(seconds)
        result = self._event("step", 0, "step", seconds, stall_s=stall_s, own_s=seconds / 2)
        self._run.results.append(result)
        self._news.append(result)
        self._speak(seconds)
        if self.is_current and not self.is_broken:
            self._next(self._keep("save" if self._stops else action))

    def _speak(self, seconds: float) -> None:
        """All ranks are heard in an attempt's first steps, and before the controller would take them for silent."""
        is_early = self.step - self._record.start_step <= self._num_heard_whole
        if not is_early and self._quiet_s < self._step_s:
            return
        self._quiet_s = 0.0
        others = range(1, self.world_size)
        if not is_early:  # what is told next begins here, not where they were last heard of
            self._run.hear([self._event("phase", rank, "snapshot", seconds) for rank in others])
        told = [self._event("phase", rank, "step", seconds, own_s=seconds / 2) for rank in others]
        self._run.hear([*self.news(), *told], is_of_all=True)
        self._quiet_s = 0.0

    # -- saves -------------------------------------------------------------------------------------------------------
    def _keep(self, action: str) -> float:
        """What the step's end asks for. Returns how long the ranks stand still."""
        if action not in ("snapshot", "replicate", "save"):
            return 0.0
        run, costs = self._run, self._run.scenario.costs
        where, stall_s = CheckpointId(self.step, self.attempt), costs.stall_s(self._rank_bytes)
        self.cadence.snapshot_started(self.step)
        self.cadence.stalled(stall_s)
        run.at(stall_s, lambda: self._took(where))
        if action != "snapshot" and self.cadence.has_buddy:
            self.cadence.replica_started(self.step)
            run.at(stall_s + costs.replica_s(self._state.snapshot_bytes), lambda: self._replicated(where))
        if action == "save":
            self.cadence.save_started(self.step, run.now)
            self._news.append(self._event("snapshot", 0, "save", durable=True))
            save = _Save()
            self.saves_in_flight.append(save)
            ranks, fragments = self.world_size, run.scenario.fragments(self.world_size)
            seconds = costs.save_s(self._state.snapshot_bytes, self._nodes, ranks, fragments)
            run.at(stall_s + seconds, lambda: self._written(where, save, seconds))
        return stall_s

    def _took(self, where: CheckpointId) -> None:
        if self.is_current and not self.is_broken:
            self._run.nodes.took(where, self._record.token)

    def _replicated(self, where: CheckpointId) -> None:
        if self.is_current and not self.is_broken:
            self._run.nodes.got_replicas(where, self._record.token)
            self.cadence.replicated(where.step)

    def _written(self, where: CheckpointId, save: _Save, seconds: float) -> None:
        """Agents go on writing when ranks end; a node that is lost does not."""
        if save in self.saves_in_flight:
            self.saves_in_flight.remove(save)
        if not save.is_lost:
            self._run.durable(where, self.world_size, self._state.checkpoint_bytes, seconds)

    # -- the end -----------------------------------------------------------------------------------------------------
    def obey(self, control: Control) -> None:
        self.cadence.settled(control.settled_step, self._run.now)
        self._stops = self._stops or control.action == "stop"

    def _stopped(self) -> None:
        self.is_broken = True  # they do not go on
        ends = self.exits({"killed": False, "node": ""})
        self._run.hear([*self.news(), self._event("stopped", 0, "end"), *ends])

    def exits(self, more: dict[str, Any]) -> list[Event]:
        """Every rank's process has gone, as it was asked to."""
        data = {**more, "killed": True, "code": 0, "signal": None}
        return [
            Event("exit", self.attempt, rank, self.step, "end", self._run.unix, 0.0, data)
            for rank in range(self.world_size)
        ]
