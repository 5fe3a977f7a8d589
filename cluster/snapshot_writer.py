"""Writes snapshots out to storage behind the ranks' backs: a thread of the node agent, at the lowest priority."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from zerofleet.cluster.policy.backoff import Backoff
from zerofleet.cluster.results import ResultLog
from zerofleet.cluster.snapshot_hasher import SnapshotHasher
from zerofleet.trainer.checkpoint.commit import Draft, Written
from zerofleet.trainer.checkpoint.format import DamagedFile, describe_payload, write_payload
from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.checkpoint.remote import forget_holders
from zerofleet.trainer.checkpoint.snapshot import REPLICAS, Snapshot, open_snapshot, snapshot_files
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.storage import Storage

MEMORY = Path("/dev/shm")
"""The file system in memory that every Linux host has."""
MAPPED_BYTES = 4 << 30
"""Of snapshot buffers, that a node agent keeps mapped. With more it would be, to the kernel, the node's largest process when memory runs out;
and nodes with so much state have cores to spare."""
_NICE = 19
"""The ranks go first: what is written in the background takes what they leave."""
_REMEMBERED = 32
"""Files that were written last: whoever orders one of them again is told of it, since a commit of it may be under way."""
_TOLD_EVERY = 10
"""Failures between two reminders that storage does not take a snapshot."""

_log = logging.getLogger(__name__)

Emit = Callable[[Event], None]
Scanned = tuple[list[str], dict[str, int]]
"""Snapshot.scan's."""


def snapshot_folder(run: RunFolder) -> str:
    """Where a node keeps a run's snapshots: the same place whichever driver asks and whatever the node's rank is, and another for
    every run, however its storage is spelled."""
    name = f"{run.name}-{xxhash.xxh3_64_hexdigest(run.storage.identity.encode())}"
    return str(MEMORY / f"zerofleet-{os.getuid()}" / name)


def remove_snapshots(folder: Path) -> None:
    """Gives a node's memory back: the snapshots in `folder`, replicas included, and nothing else; then the folders that are
    empty."""
    forget_holders(folder)
    ResultLog.remove_all(folder)
    for path in snapshot_files(folder):
        path.unlink(missing_ok=True)
    for empty in (folder / REPLICAS, folder, folder.parent):
        with contextlib.suppress(OSError):  # not empty, or never made
            empty.rmdir()


@dataclass(frozen=True)
class Order:
    """A snapshot that is to become durable. It is pinned from the moment of the order."""

    rank: int
    checkpoint: CheckpointId
    pinned: Snapshot | None
    """None when it is not there (any more)."""


class SnapshotWriter:
    """One order after the other, each tried until storage takes it. Results are events: `written`, or `unwritten` with why."""

    def __init__(self, storage: Storage, emit: Emit, mappings: Mappings, hasher: SnapshotHasher) -> None:
        """`hasher` hashes what has to wait for its turn, so that its digest is known soon, too."""
        self._storage, self._emit, self._mappings, self._hasher = storage, emit, mappings, hasher
        self._written: dict[tuple[CheckpointId, int], Written] = {}
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._num_waiting = 0
        """Orders that are not settled."""
        self._lock = threading.Lock()
        self._scans = ThreadPoolExecutor(1, "snapshot-scan", initializer=_yield_to_ranks)
        self._thread = threading.Thread(target=self._run, name="snapshot-writer", daemon=True)
        self._thread.start()

    def order(self, path: Path | str | None, rank: int, checkpoint: CheckpointId) -> None:
        """Returns at once; from here on no rank overwrites the snapshot. Without a path there was none."""
        snapshot = open_snapshot(Path(path), self._mappings) if path else None
        with self._lock:
            self._num_waiting += 1
            is_first = self._num_waiting == 1
        self._orders.put(Order(rank, checkpoint, snapshot))
        if path and not is_first:
            self._hasher.order(Path(path), rank)

    def close(self) -> None:
        """Gives up what has not been written."""
        self._closing.set()
        self._orders.put(None)
        self._thread.join()
        self._scans.shutdown(cancel_futures=True)

    def _run(self) -> None:
        _yield_to_ranks()
        while (order := self._orders.get()) is not None and not self._closing.is_set():
            started = time.time()
            try:
                self._write(order, started)
            except Exception as error:  # noqa: BLE001 - a store's client raises anything; the next order may go well
                _log.exception("writing %s", order)
                self._say_unwritten(order, started, f"{type(error).__name__}: {error}")
            finally:
                if order.pinned is not None:
                    order.pinned.close()
                with self._lock:
                    self._num_waiting -= 1

    def _write(self, order: Order, started: float) -> None:
        snapshot, known = order.pinned, self._written.get((order.checkpoint, order.rank))
        if known is not None and self._is_there(known):
            return self._say("written", order, started, **known.to_dict())
        if snapshot is None or snapshot.meta.checkpoint != order.checkpoint:
            why = "its buffer was not free, or was overwritten before it could be pinned"
            return self._say_unwritten(order, started, why)
        scanned = self._write_file(order, snapshot, started)
        if scanned is not None:
            meta = snapshot.meta
            where = meta.checkpoint, meta.rank, meta.world_size
            try:
                hashes, digests = scanned.result()
            except DamagedFile as error:
                self._storage.remove(meta.checkpoint.rank_file(meta.rank, meta.world_size))
                return self._say_unwritten(order, started, f"its snapshot in memory is damaged: {error}")
            draft = Draft.from_dict(meta.draft) if meta.draft else None
            # All of them: their rank tells the newest after its next step, and of those before nobody may have heard either.
            rank_file = describe_payload(*where, snapshot.payload, meta.header_bytes, hashes)
            written = self._written[order.checkpoint, order.rank] = Written(
                *where, rank_file, digests, draft, meta.events
            )
            if len(self._written) > _REMEMBERED:
                del self._written[next(iter(self._written))]
            self._say("written", order, started, **written.to_dict())

    def _is_there(self, written: Written) -> bool:
        try:
            path = written.checkpoint.rank_file(written.rank, written.world_size)
            return self._storage.size(path) == written.rank_file.num_bytes
        except (FileNotFoundError, StorageError):
            return False

    def _write_file(self, order: Order, snapshot: Snapshot, started: float) -> Future[Scanned] | None:
        """Until storage takes it. None when this writer is closed before: that is told here."""
        backoff = Backoff()
        while True:
            # With every try, since memory may change between two; and beside it: the disk would have nothing to do meanwhile.
            scanned = self._scans.submit(_scan, snapshot)
            try:
                self._try(snapshot)
                return scanned
            except StorageError as error:
                pause_s = backoff.next()
                if backoff.failures == 1 or backoff.failures % _TOLD_EVERY == 0:
                    since = f"for {time.time() - started:.0f} s" if backoff.failures > 1 else "and is tried again"
                    message = f"step {order.checkpoint.step} cannot be made durable {since}; training goes on: {error}"
                    self._say("incident", order, started, **{"class": "storage", "message": message})
                if self._closing.wait(pause_s):
                    self._say_unwritten(order, started, str(error))
                    return None
            finally:
                wait([scanned])

    def _try(self, snapshot: Snapshot) -> None:
        meta = snapshot.meta
        arguments = (self._storage, meta.checkpoint, meta.rank, meta.world_size, snapshot.payload)
        try:
            write_payload(*arguments)
        except FileExistsError:
            if self._storage.exists(meta.checkpoint.manifest):
                raise  # it is committed: nothing of it is ever written again
            # Of an earlier try that only seemed to fail, or of an agent that ended: nobody else writes for this attempt.
            self._storage.remove(meta.checkpoint.rank_file(meta.rank, meta.world_size))
            write_payload(*arguments)

    def _say_unwritten(self, order: Order, started: float, why: str) -> None:
        self._say("unwritten", order, started, checkpoint=asdict(order.checkpoint), message=why)

    def _say(self, kind: str, order: Order, started: float, **data: Any) -> None:
        where = (order.checkpoint.attempt, order.rank, order.checkpoint.step, "save")
        self._emit(Event(kind, *where, started, time.time() - started, data))


def _scan(snapshot: Snapshot) -> Scanned:
    """Raises DamagedFile when it is not what was taken, as far as that is known."""
    hashes, digests = snapshot.scan()
    snapshot.check(hashes)
    return hashes, digests


def _yield_to_ranks() -> None:
    """Of the thread that calls it."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
