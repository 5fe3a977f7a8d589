"""A run as a Prometheus sees it: events in, values of the catalog's metrics out. Pure: the time is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from zerofleet.cluster.goodput.history import end_of
from zerofleet.cluster.goodput.running import RunningLedger
from zerofleet.cluster.state import State
from zerofleet.cluster.verdict import Class
from zerofleet.launch.metrics.catalog import BY_NAME, INCIDENTS, TIERS
from zerofleet.launch.metrics.histogram import Distribution, Histogram
from zerofleet.launch.metrics.tiers import Tiers
from zerofleet.launch.progress import Progress
from zerofleet.trainer.data.quarantine import num_positions
from zerofleet.trainer.driver_records import DriverRecord
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import AttemptRecord

_ACTIONS = ("retry", "quarantine", "halve", "stop")


@dataclass(frozen=True)
class Facts:
    """What is known of a run before it begins."""

    version: str
    zero_stage: int
    precision: str
    steps: int
    nodes: int
    ranks: int
    has_attempts: bool = True
    """False: the run of all silos, whose silos have attempts and accounts of their own."""


@dataclass(frozen=True)
class Sample:
    """One value of the metric `name`; `labels` are the values of the catalog's labels, in their order."""

    name: str
    value: float | Distribution
    labels: tuple[str, ...] = ()


class Reading:
    """One run's."""

    def __init__(self, facts: Facts, driver: DriverRecord, began_at: float) -> None:
        """`driver` has the run now; its process began with it at `began_at` (Unix seconds), which is later than the driver's own start where
        it has begun anew."""
        self._facts, self._driver, self._began_at = facts, driver, began_at
        self._state_at = self._step_at = began_at
        self._progress = Progress(facts.steps)
        self._ledger, self._tiers = RunningLedger(), Tiers()
        self._ledger.add_driver(driver)
        self._attempts: set[int] = set()
        self._alive: dict[int, str] = {}
        """Node by rank."""
        self._stragglers: set[int] = set()
        self._num_steps = self._num_tokens = self._num_quarantined = 0
        self._step_s = Histogram(BY_NAME["step_duration_seconds"].buckets)
        self._last: dict[str, float] = {}
        self._verdicts = Counter({(kind, action): 0 for kind in get_args(Class) for action in _ACTIONS})
        self._incidents = Counter(dict.fromkeys(INCIDENTS, 0))

    # -- what is heard ---------------------------------------------------------------------------------------------
    def recall(
        self, drivers: Iterable[DriverRecord], attempts: Iterable[AttemptRecord], events: Iterable[Event]
    ) -> None:
        """What was done before `began_at`, `events` in about their order."""
        for driver in drivers:
            if driver.number < self._driver.number:
                self._ledger.add_driver(driver)
        for attempt in attempts:
            self._add(attempt)
        for event in events:
            self.hear(event)
        self._alive.clear()
        self._stragglers.clear()

    def begin(self) -> None:
        """This driver takes the run."""
        self._progress.new_driver(self._facts.steps)
        self._tiers.begin()
        self._state_at = self._step_at = self._began_at

    def hear(self, event: Event) -> None:
        """Events in the order in which the driver hears them."""
        if event.kind == "claimed":
            return self._claimed(event)
        self._progress.apply(event)
        self._ledger.hear(event)
        self._tiers.hear(event)
        if event.phase == "step" and event.kind in ("phase", "step"):
            self._step_at = max(self._step_at, end_of(event))
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event)

    def _claimed(self, event: Event) -> None:
        data, driver = event.data, self._driver
        arguments = (event.attempt, data["start_step"], None, data["world_size"], self._facts.zero_stage)
        record = AttemptRecord(
            *arguments,
            claimed_at=event.start,
            host=driver.host,
            pid=driver.pid,
            from_memory=data["from_memory"],
            quarantine=data["quarantine"],
        )
        self._add(record)
        self._tiers.claimed(record.start_step, record.from_memory)
        self._alive.clear()
        self._stragglers.clear()

    def _add(self, record: AttemptRecord) -> None:
        self._ledger.add_attempt(record)
        self._attempts.add(record.attempt)
        self._num_quarantined = num_positions(record.quarantine)

    def _on_state(self, event: Event) -> None:
        self._state_at = event.start
        if self._progress.is_final:
            self._alive.clear()
            self._stragglers.clear()

    def _on_phase(self, event: Event) -> None:
        if "node" in event.data and self._is_of_now(event):
            self._alive[event.rank] = str(event.data["node"])

    def _on_exit(self, event: Event) -> None:
        if self._is_of_now(event):
            self._alive.pop(event.rank, None)

    def _is_of_now(self, event: Event) -> bool:
        """Not what an attempt before still has to say. Ranks that only check the model are of an attempt that nobody has claimed yet."""
        return event.attempt >= max(self._attempts, default=0)

    def _on_node_lost(self, event: Event) -> None:
        self._alive = {rank: node for rank, node in self._alive.items() if node != event.data.get("node")}

    def _on_step(self, event: Event) -> None:
        data = event.data
        self._num_steps += 1
        self._num_tokens += int(data.get("tokens", 0))
        self._step_s.add(event.duration_s)
        for name in ("loss", "grad_norm", "learning_rate"):
            if data.get(name) is not None:
                self._last[name] = float(data[name])

    def _on_eval(self, event: Event) -> None:
        self._last["heldout_loss"] = float(event.data["loss"])

    def _on_verdict(self, event: Event) -> None:
        self._verdicts[str(event.data["class"]), str(event.data["action"])] += 1

    def _on_incident(self, event: Event) -> None:
        self._incidents[str(event.data.get("class", "other"))] += 1
        if event.data.get("class") == "straggler":
            rank = int(event.data["rank"])
            self._stragglers.discard(rank) if event.data.get("is_over") else self._stragglers.add(rank)

    # -- what is shown ---------------------------------------------------------------------------------------------
    def samples(self, now: float) -> Iterator[Sample]:
        """`now` in Unix seconds. What is not known yet is left out."""
        yield from self.of_run(now)
        yield from self._of_training(now)
        yield from self._of_recovery()
        yield from self._of_tiers(now)
        if self._facts.has_attempts:
            accounts = self._ledger.accounts(now)
            for label, seconds in accounts.seconds.items():
                yield Sample("time_seconds", seconds, (label,))
            yield Sample("goodput_ratio", accounts.goodput)

    def of_run(self, now: float) -> Iterator[Sample]:
        """What and where it is, and nothing that is counted."""
        facts = self._facts
        yield Sample("run_info", 1, (facts.version, str(facts.zero_stage), facts.precision))
        for state in State:
            yield Sample("state", float(state == self._progress.state), (state.value,))
        yield Sample("state_age_seconds", max(0.0, now - self._state_at))

    def _of_training(self, now: float) -> Iterator[Sample]:
        progress = self._progress
        yield Sample("step", progress.step)
        yield Sample("planned_steps", progress.total_steps)
        yield Sample("steps_total", self._num_steps)
        yield Sample("step_age_seconds", max(0.0, now - self._step_at))
        yield Sample("step_duration_seconds", self._step_s.read())
        yield Sample("tokens_total", self._num_tokens)
        yield Sample("tokens_per_second", progress.tokens_per_second or 0.0)
        if progress.mfu is not None:
            yield Sample("mfu_ratio", progress.mfu)
        for name, value in self._last.items():
            yield Sample(name, value)

    def _of_recovery(self) -> Iterator[Sample]:
        yield Sample("attempts_total", len(self._attempts))
        for cause, count in self._verdicts.items():
            yield Sample("verdicts_total", count, cause)
        for kind, count in self._incidents.items():
            yield Sample("incidents_total", count, (kind,))
        yield Sample("nodes", len(set(self._alive.values())))
        yield Sample("nodes_wanted", self._facts.nodes)
        yield Sample("ranks", len(self._alive))
        yield Sample("ranks_wanted", self._facts.ranks)
        yield Sample("stragglers", len(self._stragglers))
        yield Sample("quarantined_positions", self._num_quarantined)

    def _of_tiers(self, now: float) -> Iterator[Sample]:
        tiers, is_over = self._tiers, self._progress.is_final
        for tier, step in zip(TIERS, (tiers.memory, tiers.buddy, tiers.durable), strict=True):
            if step is not None:
                yield Sample("newest_step", step, (tier,))
        since = tiers.durable_at
        yield Sample("durable_age_seconds", 0.0 if since is None or is_over else max(0.0, now - since))
        down = tiers.storage_down_since
        yield Sample("storage_down_seconds", 0.0 if down is None else max(0.0, now - down))
        yield Sample("snapshot_duration_seconds", tiers.snapshot_s.read())
        yield Sample("checkpoint_duration_seconds", tiers.checkpoint_s.read())
        if tiers.snapshot_bytes is not None:
            yield Sample("snapshot_bytes", tiers.snapshot_bytes)
        if tiers.checkpoint_bytes is not None:
            yield Sample("checkpoint_bytes", tiers.checkpoint_bytes)
