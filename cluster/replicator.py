"""Sends a node's snapshots to its buddy, behind the ranks' backs: a thread of the node agent, at a low priority."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from zerofleet.trainer.checkpoint.format import DamagedFile
from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.checkpoint.remote import Peer, receive, send
from zerofleet.trainer.checkpoint.snapshot import Snapshot, open_snapshot
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId

_NICE = 10
"""Behind the ranks, but before what is written to storage: what a node's death costs is the steps since the newest replica."""
_CHUNK_BYTES = 4 * 2**20
_log = logging.getLogger(__name__)


class Replicator:
    """One snapshot after the other. What became of each is an event, `replicated`.

    What was sent stays pinned until `release` or `drop`: when a node dies, the buddy's copy of its part is of use only with the same step
    of all other parts, and those lie here.
    """

    def __init__(self, emit: Callable[[Event], None], mappings: Mappings) -> None:
        self._emit, self._mappings = emit, mappings
        self._buddy: Peer | None = None
        self._pinned: list[Snapshot] = []
        self._lock = threading.Lock()
        self._orders: queue.SimpleQueue[tuple[Path | None, int, CheckpointId, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="replicator", daemon=True)
        self._thread.start()

    def aim(self, buddy: Peer | None) -> None:
        """From now on snapshots go there; nothing that was pinned for an attempt before is needed any more."""
        self._buddy = buddy
        self.release(None)

    def order(self, path: str | None, rank: int, checkpoint: CheckpointId, world_size: int) -> None:
        """Returns at once; from here on no rank overwrites the snapshot. Without a path there was none."""
        if path and (snapshot := self._open(Path(path), checkpoint)):
            with self._lock:
                self._pinned.append(snapshot)
        self._orders.put((Path(path) if path else None, rank, checkpoint, world_size))

    def release(self, checkpoint: CheckpointId | None) -> None:
        """All buddies have this step: what is older may be overwritten. None: everything may be."""
        with self._lock:
            old = [s for s in self._pinned if checkpoint is None or s.meta.checkpoint.step < checkpoint.step]
            self._pinned = [s for s in self._pinned if s not in old]
        for snapshot in old:
            snapshot.close()

    def drop(self, checkpoint: CheckpointId) -> None:
        """Not all buddies have this step: it is of no use to a node's death, and the buffers are wanted."""
        with self._lock:
            dropped = [s for s in self._pinned if s.meta.checkpoint == checkpoint]
            self._pinned = [s for s in self._pinned if s not in dropped]
        for snapshot in dropped:
            snapshot.close()

    def close(self) -> None:
        """Ends after the snapshot that is being sent."""
        self._orders.put(None)
        self._thread.join()
        self.release(None)

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (order := self._orders.get()) is not None:
            path, rank, checkpoint, world_size = order
            started, message, snapshot = time.time(), "", None
            try:
                snapshot = (
                    self._open(path, checkpoint) if path else None
                )  # pinned once more: `release` may come meanwhile
                if snapshot is None:
                    message = f"rank {rank} had no snapshot of it: no buffer was free, or it was overwritten at once"
                elif (buddy := self._buddy) is None:
                    message = "the node has no buddy"
                else:
                    message = _send(snapshot, buddy)
            except (OSError, ValueError, DamagedFile) as error:
                message = f"rank {rank}'s snapshot could not be sent: {error}"
            finally:
                if snapshot is not None:
                    snapshot.close()
            data = {"checkpoint": asdict(checkpoint), "world_size": world_size, "message": message}
            where = (checkpoint.attempt, rank, checkpoint.step, "snapshot")
            self._emit(Event("replicated", *where, started, time.time() - started, data))

    def _open(self, path: Path, checkpoint: CheckpointId) -> Snapshot | None:
        """None when it is not that of the checkpoint (any more)."""
        snapshot = open_snapshot(path, self._mappings)
        if snapshot is not None and snapshot.meta.checkpoint != checkpoint:
            snapshot.close()
            return None
        return snapshot


def _send(snapshot: Snapshot, buddy: Peer) -> str:
    """Returns why the buddy has not taken it, else nothing. Raises OSError, ValueError, DamagedFile."""
    digest = snapshot.digest or snapshot.check(snapshot.hash())
    with buddy.connect() as connection:
        request = {"meta": vars(snapshot.meta), "payload_bytes": len(snapshot.payload), "digest": digest}
        send(connection, {"op": "put", "secret": buddy.secret, **request})
        if "error" in (answer := receive(connection)):
            return str(answer["error"])
        for start in range(0, len(snapshot.payload), _CHUNK_BYTES):
            connection.sendall(snapshot.payload[start : start + _CHUNK_BYTES])
        return str(receive(connection).get("error", ""))
