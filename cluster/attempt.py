"""What is known of the ranks that run now: a reading of their events."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zerofleet.cluster.hooks import Origin
from zerofleet.cluster.policy.heartbeat import Heartbeat, Limits, Silence, is_sign
from zerofleet.cluster.policy.stragglers import Straggler, Stragglers
from zerofleet.cluster.spec import CHECK, TRAIN
from zerofleet.cluster.stacks import RankStack
from zerofleet.cluster.verdict import Evidence, Place, is_echo, is_failure, progress
from zerofleet.trainer.events import Event

_SHORTEST_WAIT_S = 0.01
"""So that a driver that waits for the end of a rank's patience does not spin."""


class Stage(enum.StrEnum):
    """What ranks are forked for, in this order."""

    CHECK = "check"
    """On every rank, before an attempt is claimed: does the device compute, does the network carry, does the model take the data?"""
    TRAIN = "train"
    EXPORT = "export"
    """On one rank, when training has finished."""

    @property
    def target(self) -> str:
        """The function that each rank runs."""
        return {Stage.TRAIN: TRAIN, Stage.CHECK: CHECK}.get(self, f"zerofleet.cluster.tasks:{self.value}")

    def when_stopped(self, has_trained: bool) -> str:
        """For messages: where in its life a run is that is stopped, no rank of it training."""
        before = "before it went on" if has_trained else "before it trained"
        return "while the model was exported" if self is Stage.EXPORT else before

    @property
    def log_name(self) -> str:
        """Logs are called <this>-00000.log."""
        return "rank" if self is Stage.TRAIN else self.value


@dataclass
class _RankState:
    """When a rank was last heard of (monotonic seconds), and where it was."""

    seen_at: float
    start_step: int
    phase: str = "import"
    step: int = 0
    """As the rank says it: 0 until it has loaded a state."""
    node: str = ""
    had_state: bool = False
    has_exited: bool = False

    @property
    def place(self) -> Place:
        return Place(self.node, self.phase, max(self.step, self.start_step), self.had_state)


@dataclass
class Attempt:
    """One life of the ranks."""

    number: int
    stage: Stage
    start: Origin | None
    num_ranks: int
    started_at: float
    step: int = 0
    """Newest step that was finished, the start's included."""
    checkpoint_step: int = 0
    """Newest step that has a manifest, as far as this attempt knows."""
    ordered_step: int = 0
    """Newest step that was to become durable."""
    has_stepped: bool = False
    is_finished: bool = False
    done_at: float | None = None
    """When rank 0 said that it has finished or stopped."""
    limits: Limits | None = None
    """What the run has shown of its phases; without, and in the other stages, one limit holds for all."""
    _ranks: dict[int, _RankState] = field(default_factory=dict)
    _num_exited: int = 0
    _is_overdue: bool = False
    _events: list[Event] = field(default_factory=list)
    """Errors, exits and lost nodes."""
    _written: set[int] = field(default_factory=set)
    """Ranks whose part of `ordered_step` is in storage."""
    _failed_at: float | None = None
    _heartbeat: Heartbeat | None = None
    _stragglers: Stragglers | None = None
    _news: list[Straggler] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.start is not None:
            self.step = self.start.checkpoint.step
            self.checkpoint_step = 0 if self.start.in_memory else self.step
        self._ranks = {rank: _RankState(self.started_at, self.step) for rank in range(self.num_ranks)}
        if self.limits is not None and self.stage is Stage.TRAIN:
            self._heartbeat = Heartbeat(self.limits, self.num_ranks, self.started_at)
            self._stragglers = Stragglers(self.num_ranks)

    @property
    def base_step(self) -> int:
        """Newest step that is durable or that the attempt started from."""
        return max(self.checkpoint_step, self.start.checkpoint.step if self.start else 0)

    @property
    def save_in_flight(self) -> tuple[int, int] | None:
        """Attempt and step of the newest save, while nobody has said that it is durable."""
        return (self.number, self.ordered_step) if self.ordered_step > self.checkpoint_step else None

    def hear(self, event: Event, now: float) -> None:
        """Takes an event in; those of other attempts are none of this one's."""
        if event.attempt != self.number:
            return
        if self._heartbeat is not None:
            self._heartbeat.hear(event, now)
        if (rank := self._ranks.get(event.rank)) and is_sign(event):
            rank.seen_at = now
            if progress(event.step, event.phase) >= progress(rank.step, rank.phase):  # not a result that was held back
                rank.phase, rank.step = event.phase, event.step
            rank.node = event.data.get("node", rank.node)
            rank.had_state = rank.had_state or event.phase == "load"
            if self._stragglers is not None and "own_s" in event.data:
                own_s = event.data["own_s"] + event.data.get("data_s", 0.0)  # others wait for its data, too
                self._news += self._stragglers.measured(event.rank, own_s)
        if event.kind == "step" or (event.kind == "phase" and event.phase == "step"):
            self.has_stepped = True
            self.step = max(self.step, event.step)
        elif event.kind in ("written", "unwritten") or (event.kind == "snapshot" and event.data["durable"]):
            self._hear_save(event)
        elif event.kind == "checkpoint":
            self.checkpoint_step = max(self.checkpoint_step, event.step)
        elif event.kind in ("finished", "stopped"):
            self.is_finished, self.done_at = event.kind == "finished", now
            self.step = max(self.step, event.step)
        elif event.kind in ("exit", "error", "node_lost"):
            self._hear_end(event, now)

    def _hear_save(self, event: Event) -> None:
        if event.step > self.ordered_step:
            self.ordered_step = event.step
            self._written.clear()
        if event.kind == "written" and event.step == self.ordered_step:
            self._written.add(event.rank)

    def _hear_end(self, event: Event, now: float) -> None:
        self._events.append(event)
        if event.kind == "exit" and (rank := self._ranks.get(event.rank)) and not rank.has_exited:
            rank.has_exited, rank.node = True, event.data.get("node", rank.node)
            self._num_exited += 1
        if is_failure(event) and self._failed_at is None:
            self._failed_at = now

    def has_failed(self, now: float, settle_s: float) -> bool:
        """Whether a rank or node failed. While only echoes were heard, waits `settle_s` for the cause. Once rank 0 is done, only what is still to
        become durable can be lost: with a node that has not written its part."""
        if self.done_at is not None:
            return self._lost_a_part()
        if self._failed_at is None:
            return self._ended_without_a_word()
        failures = [event for event in self._events if is_failure(event)]
        return now - self._failed_at >= settle_s or not all(map(is_echo, failures))

    def _lost_a_part(self) -> bool:
        if self.ordered_step <= self.checkpoint_step:
            return False
        lost = {event.data["node"] for event in self._events if event.kind == "node_lost"}
        return any(rank.node in lost and number not in self._written for number, rank in self._ranks.items())

    def overdue(self, now: float, limit_s: float) -> str:
        """Once, when `limit_s` after rank 0 was done not all ranks have exited: which have not. From then on nobody waits for them."""
        if self.done_at is None or self._is_overdue or self.has_ended() or now - self.done_at < limit_s:
            return ""
        self._is_overdue = True
        return f"ranks did not exit: {self.where_ranks_are()}"

    def has_ended(self) -> bool:
        """Whether every rank has exited, or had its time to, and the stage's work is done."""
        if self._num_exited < self.num_ranks and not self._is_overdue:
            return False
        return self.done_at is not None if self.stage is Stage.TRAIN else self._failed_at is None

    @property
    def has_trained(self) -> bool:
        """Whether its ranks have trained as far as they should, and are gone, or should be."""
        return self.stage is Stage.TRAIN and self.has_ended()

    def _ended_without_a_word(self) -> bool:
        return self.stage is Stage.TRAIN and self._num_exited == self.num_ranks > 0 and self.done_at is None

    def take_incidents(self) -> list[dict[str, Any]]:
        """What a user should know of the ranks, once: who has become a straggler, and who is none any more."""
        taken, self._news = self._news, []
        return [self._incident(straggler) for straggler in taken]

    def _incident(self, straggler: Straggler) -> dict[str, Any]:
        rank, node = straggler.rank, self._ranks[straggler.rank].node
        message = straggler.describe(f"rank {rank} on node {node}" if node else f"rank {rank}")
        told = {"rank": rank, "node": node, "own_s": straggler.own_s, "is_over": straggler.is_over}
        return {"class": "straggler", "message": message, **told}

    def silent(self, now: float, limit_s: float) -> tuple[Silence, ...]:
        """The ranks that gave no sign of life for as long as they may: by the learned limits, else `limit_s`. None once rank 0 is
        done."""
        if self.done_at is not None:
            return ()
        if self._heartbeat is not None:
            return self._heartbeat.silent(now)
        return tuple(
            (number, rank.phase, now - rank.seen_at)
            for number, rank in self._ranks.items()
            if not rank.has_exited and now - rank.seen_at > limit_s
        )

    def quiet(self, now: float, least_s: float) -> tuple[Silence, ...]:
        """The ranks of training that have said nothing for so long, although they may."""
        return self._heartbeat.quiet(now, least_s) if self._heartbeat is not None and self.done_at is None else ()

    def patience_s(self, now: float, longest_s: float) -> float:
        """How long to wait for events before looking whether anybody is silent: at most `longest_s`."""
        if self._heartbeat is None or self.done_at is not None:
            return longest_s
        return min(longest_s, max(_SHORTEST_WAIT_S, self._heartbeat.patience_s(now)))

    def where_ranks_are(self) -> str:
        """For messages: how many ranks are in which phase, those of the rarest named."""
        phases = Counter(rank.phase for rank in self._ranks.values() if not rank.has_exited)
        if not phases:
            return "no rank is alive"
        counts = ", ".join(f"{count} in phase {phase}" for phase, count in phases.most_common())
        rarest = min(phases, key=lambda phase: phases[phase])
        named = [str(n) for n, rank in self._ranks.items() if rank.phase == rarest and not rank.has_exited][:8]
        return f"ranks: {counts} (rank {', '.join(named)} in {rarest})"

    def evidence(
        self, silent: tuple[Silence, ...], late: str, stacks: Mapping[int, RankStack] | None = None
    ) -> Evidence:
        """`stacks`: what the ranks were doing before they were ended."""
        if self._ended_without_a_word() and self._failed_at is None:
            late = late or "every rank ended with exit code 0 without finishing or stopping"
        places = {number: rank.place for number, rank in self._ranks.items()}
        return Evidence(tuple(self._events), silent, late, places, stacks or {})
