"""The nodes of a simulated run: which are there, which could take a lost one's place, and whose snapshots they hold."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zerofleet.cluster.group import Placement
from zerofleet.cluster.policy.buddies import plan_buddies
from zerofleet.cluster.simulation.costs import Tier
from zerofleet.cluster.simulation.group import SimulatedGroup
from zerofleet.cluster.simulation.scenario import Scenario
from zerofleet.cluster.spec import SnapshotInfo, one_per_rank
from zerofleet.trainer.checkpoint.snapshot import REPLICAS, SnapshotMeta
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.run_folder import CheckpointId


@dataclass
class _Node:
    name: str
    rack: int
    ready_at: float


@dataclass(frozen=True)
class Held:
    """A snapshot that all nodes of an attempt took together: by node rank who took it, and who keeps whose replica."""

    checkpoint: CheckpointId
    token: str
    owners: tuple[str, ...]
    keepers: dict[str, str] = field(default_factory=dict)


class SimulatedNodes(SimulatedGroup):
    """A group whose nodes are lost, replaced and repaired. Names are never used twice: what a node held goes with it."""

    def __init__(
        self,
        scenario: Scenario,
        now: Callable[[], float],
        begin: Callable[..., None],
        obey: Callable[[Control], None],
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        """`begin(attempt, tier)` is called when ranks are to be forked, `obey` with what rank 0 is asked."""
        super().__init__(scenario.gpus, scenario.ranks_per_node, clock)
        self._scenario, self._now, self._begin, self._obey = scenario, now, begin, obey
        self._born = 0
        self._nodes: dict[int, _Node] = {rank: self._new(0.0) for rank in range(scenario.nodes)}
        self._spares = [self._new(0.0) for _ in range(scenario.spares)]
        self._keepers: dict[str, str] = {}
        self.ends: list[Event] = []
        """What `kill` is to return."""
        self._taken: deque[Held] = deque(maxlen=2)
        self._replicated: deque[Held] = deque(maxlen=2)

    def _new(self, ready_at: float, rack: int | None = None) -> _Node:
        number, self._born = self._born, self._born + 1
        return _Node(f"node-{number:05d}", number // self._scenario.nodes_per_rack if rack is None else rack, ready_at)

    @property
    def is_whole(self) -> bool:
        return len(self._nodes) == self.num_nodes

    @property
    def names(self) -> dict[int, str]:
        """By node rank."""
        return {rank: node.name for rank, node in sorted(self._nodes.items())}

    # -- loss and replacement ----------------------------------------------------------------------------------------
    def same_rack(self, rank: int) -> list[int]:
        """Node ranks in the rack of one."""
        return [other for other, node in self._nodes.items() if node.rack == self._nodes[rank].rack]

    def lose(self, ranks: Sequence[int]) -> list[tuple[str, int]]:
        """Name and rack of each."""
        lost = [self._nodes.pop(rank) for rank in ranks if rank in self._nodes]
        return [(node.name, node.rack) for node in lost]

    def repaired(self, rack: int) -> None:
        self._spares.append(self._new(self._now(), rack))

    def place(self, *_: Any, **__: Any) -> Placement:
        now = self._now()
        for rank in range(self.num_nodes):
            if rank not in self._nodes and self._spares:
                node = self._spares.pop(0)
                node.ready_at = max(now, node.ready_at) + self._scenario.costs.spare_s
                self._nodes[rank] = node
        ready = sum(node.ready_at <= now for node in self._nodes.values())
        if ready == self.num_nodes:
            return Placement()
        return Placement(f"{self.num_nodes - ready} of {self.num_nodes} nodes", num_ready=ready)

    def resize(self, num_nodes: int) -> None:
        nodes = sorted(self._nodes.items(), key=lambda item: (item[1].ready_at > self._now(), item[0]))
        self._spares += [node for _, node in nodes[num_nodes:]]
        self.num_nodes, self._nodes = num_nodes, {rank: node for rank, (_, node) in enumerate(nodes[:num_nodes])}

    def available(self) -> list[str]:
        return [node.name for node in [*self._nodes.values(), *self._spares]]

    # -- attempts ----------------------------------------------------------------------------------------------------
    def start(self, *arguments: Any, **_: Any) -> None:
        _, attempt, _, _, memory = arguments
        racks = {
            n.name: f"rack-{n.rack}" if self._scenario.knows_racks else None for _, n in sorted(self._nodes.items())
        }
        self._keepers = plan_buddies(racks, self._keepers).keepers
        self.on_stacks = {}
        self._begin(attempt, self._tier(memory))

    def _tier(self, memory: CheckpointId | None) -> Tier | None:
        """None: not from memory."""
        if memory is None:
            return None
        chosen = one_per_rank(self.snapshots(), memory)
        return "buddy" if any(f"/{REPLICAS}/" in info.path for info in chosen) else "own memory"

    def kill(self) -> list[Event]:
        ends, self.ends = self.ends, []
        return ends

    def control(self, control: Control) -> None:
        self._obey(control)

    # -- snapshots ---------------------------------------------------------------------------------------------------
    def took(self, checkpoint: CheckpointId, token: str) -> None:
        """All nodes hold a snapshot of their ranks."""
        self._taken.append(Held(checkpoint, token, tuple(self.names.values())))

    def got_replicas(self, checkpoint: CheckpointId, token: str) -> None:
        """And so do their buddies. What was sent stays with its owner, too."""
        self._replicated.append(Held(checkpoint, token, tuple(self.names.values()), dict(self._keepers)))

    def snapshots(self) -> list[SnapshotInfo]:
        ranks = {node.name: rank for rank, node in self._nodes.items()}
        found: dict[tuple[CheckpointId, str, str], list[SnapshotInfo]] = {}
        for held in [*self._taken, *self._replicated]:
            for place, owner in enumerate(held.owners):
                if owner in ranks:
                    found[held.checkpoint, owner, owner] = self._infos(held, place, ranks[owner], owner)
                keeper = held.keepers.get(owner, "")
                if keeper in ranks:
                    folder = f"{keeper}/{REPLICAS}"
                    found[held.checkpoint, owner, folder] = self._infos(held, place, ranks[keeper], folder)
        return [info for infos in found.values() for info in infos]

    def _infos(self, held: Held, place: int, holder: int, folder: str) -> list[SnapshotInfo]:
        first, where = place * self.ranks_per_node, held.checkpoint
        world = len(held.owners) * self.ranks_per_node
        return [
            SnapshotInfo(
                holder,
                f"/dev/shm/{folder}/rank-{rank:05d}.snapshot",
                SnapshotMeta(where.step, where.attempt, where.silo, rank, world, held.token),
            )
            for rank in range(first, first + self.ranks_per_node)
        ]
