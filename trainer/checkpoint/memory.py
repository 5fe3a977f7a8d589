"""Reading a state back from snapshots: those of a node's own memory, which every rank of the node may map."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from zerofleet.trainer.checkpoint.commit import Draft, add_parts, partial_digests
from zerofleet.trainer.checkpoint.format import DamagedFile, FragmentTable, Manifest
from zerofleet.trainer.checkpoint.snapshot import Snapshot, buffer_paths, open_snapshot
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
        ours = sum(path.stat().st_blocks * 512 for path in folder.glob("rank-*.snapshot"))
        free = psutil.virtual_memory().available
        with contextlib.suppress(OSError, ValueError):  # "max", or no cgroup: no limit
            free = min(free, int(_CGROUP_LIMIT.read_text()) - int(_CGROUP_USED.read_text()))
        return NodeMemory(shutil.disk_usage(folder).free + ours, free + ours)


def num_buffers(memory: NodeMemory, snapshot_bytes: int, most: int) -> int:
    """How many buffers of `snapshot_bytes` (of all the node's ranks together) fit, at most `most`. Pure."""
    room = min(memory.free_shm_bytes, int(memory.free_bytes * MEMORY_SHARE))
    return min(most, room // max(1, snapshot_bytes))


class SnapshotReader(FragmentTable):
    """The snapshots of all ranks of one step. They stay pinned until `close`."""

    def __init__(self, folder: Path, checkpoint: CheckpointId, world_size: int, token: str) -> None:
        """Raises DamagedFile when one is missing."""
        self._snapshots = [_find(folder, checkpoint, rank, token) for rank in range(world_size)]
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
        """Of every `world_size`-th snapshot, this rank's first."""
        return add_parts(partial_digests(snapshot.fragments()) for snapshot in self._snapshots[rank::world_size])

    def close(self) -> None:
        for snapshot in self._snapshots:
            snapshot.close()


def _find(folder: Path, checkpoint: CheckpointId, rank: int, token: str) -> Snapshot:
    """A run name that was used before left snapshots with another token."""
    for path in buffer_paths(folder, rank):
        if snapshot := open_snapshot(path):
            if snapshot.meta.checkpoint == checkpoint and snapshot.meta.token == token:
                return snapshot
            snapshot.close()
    raise DamagedFile(f"rank {rank}'s snapshot is not in {folder}")
