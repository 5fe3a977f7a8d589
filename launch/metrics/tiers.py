"""What would be lost: the newest step in the nodes' memory, at their buddies and in storage, and since when nothing is durable. Pure."""

from __future__ import annotations

from collections import deque

from zerofleet.cluster.goodput.history import end_of
from zerofleet.cluster.replicas import Replicas
from zerofleet.launch.metrics.catalog import BY_NAME
from zerofleet.launch.metrics.histogram import Histogram
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId

_REMEMBERED = 64
"""Durable steps that are kept in mind, the newest: a damaged one is walked back over."""


class Tiers:
    """A reading of events. Times are Unix seconds."""

    def __init__(self) -> None:
        self.memory: int | None = None
        self.buddy: int | None = None
        self.snapshot_bytes: int | None = None
        self.checkpoint_bytes: int | None = None
        self.storage_down_since: float | None = None
        self.durable_at: float | None = None
        """When a checkpoint last became durable under this driver; before the first, when its first step was done."""
        self.snapshot_s = Histogram(BY_NAME["snapshot_duration_seconds"].buckets)
        self.checkpoint_s = Histogram(BY_NAME["checkpoint_duration_seconds"].buckets)
        self._durable: deque[int] = deque(maxlen=_REMEMBERED)
        self._replicas = Replicas()
        self._copying: CheckpointId | None = None
        self._copied: dict[int, tuple[int, float]] = {}
        """Bytes and seconds by rank, of the snapshot that is being taken."""

    @property
    def durable(self) -> int | None:
        """The newest step in storage."""
        return max(self._durable, default=None)

    def begin(self) -> None:
        """A driver takes the run, and has written its claim: how long nobody had it says nothing about storage."""
        self.durable_at = self.storage_down_since = None

    def claimed(self, start_step: int, from_memory: bool) -> None:
        """An attempt starts there: copies of later steps do not count any more."""
        self._durable = deque((step for step in self._durable if step <= start_step), self._durable.maxlen)
        self.memory = start_step if from_memory else None
        self.buddy = self.buddy if self.buddy is not None and self.buddy <= start_step else None
        self.storage_down_since = None  # a claim is a file there

    def hear(self, event: Event) -> None:
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event)

    def _on_step(self, event: Event) -> None:
        if self.durable_at is None:
            self.durable_at = end_of(event)

    def _on_snapshot(self, event: Event) -> None:
        checkpoint = CheckpointId(**event.data["checkpoint"])
        if checkpoint != self._copying:
            self._copying, self._copied = checkpoint, {}
        if event.data["path"] is None:
            return
        self._copied[event.rank] = event.data.get("bytes", 0), event.duration_s
        if len(self._copied) == event.data["world_size"]:
            self.memory = checkpoint.step
            self.snapshot_bytes = sum(num_bytes for num_bytes, _ in self._copied.values())
            self.snapshot_s.add(max(seconds for _, seconds in self._copied.values()))

    def _on_ranks(self, event: Event) -> None:
        """The recorder's word on snapshots, for whoever has nothing but the run folder."""
        self.memory = event.data.get("snapshot_step", self.memory)

    def _on_replicated(self, event: Event) -> None:
        settled = self._replicas.hear(event)
        if settled is not None and not settled.problem:
            self.buddy = settled.checkpoint.step

    def _on_written(self, event: Event) -> None:
        self.storage_down_since = None

    def _on_checkpoint(self, event: Event) -> None:
        self.storage_down_since = None
        self._durable.append(event.step)
        self.durable_at = end_of(event)
        self.checkpoint_bytes = int(event.data["bytes"])
        self.checkpoint_s.add(event.duration_s)

    def _on_incident(self, event: Event) -> None:
        is_down = event.data.get("class") == "storage" and not event.data.get("given_up")
        if is_down and self.storage_down_since is None:
            self.storage_down_since = end_of(event)
