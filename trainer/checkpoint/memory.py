"""How much memory there is for snapshots, and reading a state back from them: those of the node's own memory, which every rank of
the node may map, and for ranks whose snapshots lie elsewhere those that other nodes hold."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from zerofleet.trainer.checkpoint.buffers import NodeMemory
from zerofleet.trainer.checkpoint.commit import Draft, add_parts, partial_digests
from zerofleet.trainer.checkpoint.format import DamagedFile, FragmentTable, Manifest
from zerofleet.trainer.checkpoint.remote import Holder, RemoteSnapshot, read_holders
from zerofleet.trainer.checkpoint.snapshot import (
    REPLICAS,
    Snapshot,
    buffer_paths,
    open_snapshot,
    snapshot_files,
)
from zerofleet.trainer.errors import SnapshotUnreachable
from zerofleet.trainer.run_folder import CheckpointId

_CGROUP_LIMIT, _CGROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def node_memory(folder: Path) -> NodeMemory:
    """This node's memory as it is now, for buffers in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = sum(path.stat().st_blocks * 512 for path in snapshot_files(folder))
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # "max", or no cgroup: no limit
        free = min(free, int(_CGROUP_LIMIT.read_text()) - int(_CGROUP_USED.read_text()))
    return NodeMemory(shutil.disk_usage(folder).free + ours, free + ours)


class SnapshotReader(FragmentTable):
    """The snapshots of all ranks of one step. They stay pinned until `close`."""

    def __init__(self, folder: Path, checkpoint: CheckpointId, world_size: int, token: str) -> None:
        """Raises DamagedFile when one is missing, SnapshotUnreachable when another node that has one cannot be reached."""
        self._snapshots: list[Snapshot | RemoteSnapshot] = []
        elsewhere = {holder.rank: holder for holder in read_holders(folder)}
        try:
            for rank in range(world_size):
                self._snapshots.append(_open(folder, checkpoint, rank, token, elsewhere.get(rank)))
        except (DamagedFile, SnapshotUnreachable):
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
        super().__init__(self.manifest.tensors, ((snapshot, snapshot.header()) for snapshot in self._snapshots))

    @property
    def events(self) -> Sequence[dict[str, object]]:
        """What rank 0 had reported of its newest steps."""
        return self._snapshots[0].meta.events

    def partial_digests(self, rank: int, world_size: int) -> dict[str, int]:
        """Of every `world_size`-th snapshot, this rank's first, after it was compared with its own digest. A remote one is summed up
        where it lies. Raises DamagedFile and SnapshotUnreachable."""
        return add_parts(
            s.partial_digests() if isinstance(s, RemoteSnapshot) else checked_digests(s)
            for s in self._snapshots[rank::world_size]
        )

    def close(self) -> None:
        for snapshot in self._snapshots:
            snapshot.close()


def checked_digests(snapshot: Snapshot) -> dict[str, int]:
    """commit.partial_digests of a snapshot that holds what was put there, as far as that is known. Raises DamagedFile."""
    if snapshot.digest is None:
        return partial_digests(snapshot.fragments())
    hashes, digests = snapshot.scan()
    snapshot.check(hashes)
    return digests


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
