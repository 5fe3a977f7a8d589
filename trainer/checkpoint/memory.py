"""How much memory snapshots may take, and reading a state back from them: those of the node's own memory, which every rank of
the node may map, and for ranks whose snapshots lie elsewhere those that other nodes hold."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from zerofleet.trainer.checkpoint.commit import Draft, add_parts, partial_digests
from zerofleet.trainer.checkpoint.format import DamagedFile, FragmentTable, Manifest
from zerofleet.trainer.checkpoint.remote import Holder, RemoteSnapshot, read_holders
from zerofleet.trainer.checkpoint.snapshot import (
    MAX_BUFFERS,
    REPLICAS,
    Snapshot,
    buffer_paths,
    open_snapshot,
    snapshot_files,
)
from zerofleet.trainer.run_folder import CheckpointId

_CGROUP_LIMIT, _CGROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
MEMORY_SHARE = 0.5
"""Of the memory that is free when a run starts, what its buffers may take at most: the rest is for the ranks and the page
cache."""


@dataclass(frozen=True)
class NodeMemory:
    """One node's memory as its ranks see it, in bytes. What this run's buffers hold already counts as free."""

    free_shm_bytes: int
    free_bytes: int

    @staticmethod
    def of(folder: Path) -> NodeMemory:
        """As it is now, for buffers in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        ours = sum(path.stat().st_blocks * 512 for path in snapshot_files(folder))
        free = psutil.virtual_memory().available
        with contextlib.suppress(OSError, ValueError):  # "max", or no cgroup: no limit
            free = min(free, int(_CGROUP_LIMIT.read_text()) - int(_CGROUP_USED.read_text()))
        return NodeMemory(shutil.disk_usage(folder).free + ours, free + ours)


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


class SnapshotReader(FragmentTable):
    """The snapshots of all ranks of one step. They stay pinned until `close`."""

    def __init__(self, folder: Path, checkpoint: CheckpointId, world_size: int, token: str) -> None:
        """Raises DamagedFile when one is missing."""
        self._snapshots: list[Snapshot | RemoteSnapshot] = []
        elsewhere = {holder.rank: holder for holder in read_holders(folder)}
        try:
            for rank in range(world_size):
                self._snapshots.append(_open(folder, checkpoint, rank, token, elsewhere.get(rank)))
        except DamagedFile:
            self.close()
            raise
        draft = self._snapshots[0].meta.draft
        assert draft is not None
        self.manifest = Manifest(
            step=checkpoint.step,
            attempt=checkpoint.attempt,
            silo=checkpoint.silo,
            world_size=world_size,
            digests={},
            rank_files=[],
            created_at=0.0,
            **vars(Draft.from_dict(draft)),
        )
        super().__init__(self.manifest.tensors, self._snapshots)

    @property
    def events(self) -> Sequence[dict[str, object]]:
        """What rank 0 had reported of its newest steps."""
        return self._snapshots[0].meta.events

    def partial_digests(self, rank: int, world_size: int) -> dict[str, int]:
        """Of every `world_size`-th snapshot, this rank's first. A remote one is summed up where it lies."""
        return add_parts(
            s.partial_digests() if isinstance(s, RemoteSnapshot) else partial_digests(s.fragments())
            for s in self._snapshots[rank::world_size]
        )

    def close(self) -> None:
        for snapshot in self._snapshots:
            snapshot.close()


def _open(
    folder: Path, checkpoint: CheckpointId, rank: int, token: str, holder: Holder | None
) -> Snapshot | RemoteSnapshot:
    """A run name that was used before left snapshots with another token."""
    for path in (*buffer_paths(folder, rank), *buffer_paths(folder / REPLICAS, rank)):
        if snapshot := open_snapshot(path):
            if snapshot.meta.checkpoint == checkpoint and snapshot.meta.token == token:
                return snapshot
            snapshot.close()
    if holder is not None:
        return RemoteSnapshot(holder, checkpoint)
    raise DamagedFile(f"rank {rank}'s snapshot is neither in {folder} nor with another node")
