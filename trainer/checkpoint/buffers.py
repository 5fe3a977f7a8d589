"""How many snapshots a node's memory holds. Pure and light: a launcher plans with it for nodes that are not there yet."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BUFFERS = 5
"""Two take turns: a rank that is killed while it fills one has the other still whole. One for a writer, one for what is sent to
the buddy, and one for the step that the buddies have."""
DESCRIPTION_ROOM_BYTES = 1 << 20
"""Room for the description and the header when a buffer is reserved; it grows when they need more."""
MEMORY_SHARE = 0.5
"""Of the memory that is free when a run starts, what its buffers may take at most: the rest is for the ranks and the page
cache."""


@dataclass(frozen=True)
class NodeMemory:
    """One node's memory as its ranks see it, in bytes. What this run's buffers hold already counts as free."""

    free_shm_bytes: int
    free_bytes: int


@dataclass(frozen=True, order=True)
class Buffers:
    """How many snapshots a node holds: of its own ranks, and of its buddy's."""

    own: int
    replicas: int

    @property
    def can_keep(self) -> bool:
        """Whether a rank may keep a buffer for a writer that comes late, and still have two to take turns."""
        return self.own >= (MAX_BUFFERS if self.replicas else 3)


REPLICA_BUFFERS = 2
"""One that is whole while the other is received."""
_ALONE = (Buffers(3, 0), Buffers(2, 0))
_WITH_BUDDY = tuple(Buffers(own, REPLICA_BUFFERS) for own in (MAX_BUFFERS, 4, 3)) + _ALONE
"""Best first. With three of its own beside replicas, no snapshot is taken while one is sent; with fewer than two, a rank that is
killed while it fills one has nothing left."""
NO_BUFFERS = Buffers(0, 0)


def plan_buffers(memory: NodeMemory, snapshot_bytes: int, has_buddy: bool) -> Buffers:
    """What fits, for snapshots of `snapshot_bytes` (of all the node's ranks together, and of the buddy's). Pure."""
    room = min(memory.free_shm_bytes, int(memory.free_bytes * MEMORY_SHARE)) // max(1, snapshot_bytes)
    choices = _WITH_BUDDY if has_buddy else _ALONE
    return next((choice for choice in choices if choice.own + choice.replicas <= room), NO_BUFFERS)
