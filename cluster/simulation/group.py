"""Ranks without processes: what the controller hears of them is what somebody has them say."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from zerofleet.cluster.group import Departure, Placement
from zerofleet.cluster.spec import SnapshotInfo
from zerofleet.cluster.stacks import RankStack
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.run_folder import CheckpointId

WAITING_STACK = 'Thread 0x1 (most recent call first):\n  File "distributed_c10d.py", line 100 in all_reduce\n'
BUSY_STACK = 'Thread 0x1 (most recent call first):\n  File "model.py", line 7 in forward\n'
ECHO: dict[str, Any] = {
    "type": "DistBackendError",
    "message": "Connection closed by peer",
    "frames": [],
    "user": False,
    "traceback": "",
}
"""What a rank says that has lost its connection to another one."""


class SimulatedGroup:
    """`say` is what the next poll hears, pickled as one list of events per node, as Ray does. All nodes are there, for ever."""

    def __init__(self, num_ranks: int, ranks_per_node: int, clock: Callable[[], float]) -> None:
        """By `clock` unpickling is timed."""
        self._clock = clock
        self.ranks_per_node = ranks_per_node
        self.num_nodes = num_ranks // ranks_per_node
        self._batch: list[bytes] = []
        self.unpickle_s = 0.0
        """Of the newest poll."""
        self.on_stacks: dict[int, RankStack] = {}

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.ranks_per_node

    @property
    def is_whole(self) -> bool:
        return True

    def say(self, events: Sequence[Event]) -> None:
        """In place of what was to be heard before."""
        nodes = range(0, len(events), self.ranks_per_node)
        self._batch = [pickle.dumps(events[node : node + self.ranks_per_node]) for node in nodes]

    def poll(self, timeout_s: float) -> list[Event]:
        began = self._clock()
        events = [event for node in self._batch for event in pickle.loads(node)]
        self.unpickle_s, self._batch = self._clock() - began, []
        return events

    def hang(self, busy_rank: int) -> None:
        """From now on all ranks wait in a collective but one, which computes."""
        waits, computes = RankStack("S", WAITING_STACK, True), RankStack("R", BUSY_STACK, False)
        self.on_stacks = dict.fromkeys(range(self.world_size), waits) | {busy_rank: computes}

    def resize(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes

    def departing(self) -> list[Departure]:
        return []

    def release(self, departures: Sequence[Departure]) -> None:
        raise AssertionError("nobody leaves")

    def leave_out(self, names: Sequence[str]) -> list[str]:
        return []

    def available(self) -> list[str]:
        return [f"node-{number:05d}" for number in range(self.num_nodes)]

    def place(self, *_: Any, **__: Any) -> Placement:
        return Placement()

    def start(self, *_: Any, **__: Any) -> None:
        pass

    def control(self, control: Control) -> None:
        pass

    def kill(self) -> list[Event]:
        return []

    def snapshots(self) -> list[SnapshotInfo]:
        return []

    def stacks(self) -> dict[int, RankStack]:
        return self.on_stacks

    def persist(self, checkpoint: CheckpointId) -> None:
        pass

    def replicated(self, checkpoint: CheckpointId, is_whole: bool) -> None:
        pass

    def close(self, keep_snapshots: bool = False) -> None:
        pass
