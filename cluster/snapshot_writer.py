"""Writes snapshots out to storage behind the ranks' backs: a thread of the node agent, at the lowest priority."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from zerofleet.cluster.policy.backoff import Backoff
from zerofleet.cluster.results import ResultLog
from zerofleet.trainer.checkpoint.commit import Draft, Written, partial_digests
from zerofleet.trainer.checkpoint.format import DamagedFile, RankFile, write_payload
from zerofleet.trainer.checkpoint.remote import forget_holders
from zerofleet.trainer.checkpoint.snapshot import REPLICAS, Snapshot, open_snapshot, snapshot_files
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId, RunFolder
from zerofleet.trainer.storage import Storage

MEMORY = Path("/dev/shm")
"""The file system in memory that every Linux host has."""
_NICE = 19
"""The ranks go first: what is written in the background takes what they leave."""
_REMEMBERED = 32
"""Files that were written last: whoever orders one of them again is told of it, since a commit of it may be under way."""
_TOLD_EVERY = 10
"""Failures between two reminders that storage does not take a snapshot."""

_log = logging.getLogger(__name__)

Emit = Callable[[Event], None]


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

    def __init__(self, storage: Storage, emit: Emit) -> None:
        self._storage, self._emit = storage, emit
        self._written: dict[tuple[CheckpointId, int], Written] = {}
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshot-writer", daemon=True)
        self._thread.start()

    def order(self, path: Path | str | None, rank: int, checkpoint: CheckpointId) -> None:
        """Returns at once; from here on no rank overwrites the snapshot. Without a path there was none."""
        self._orders.put(Order(rank, checkpoint, open_snapshot(Path(path)) if path else None))

    def close(self) -> None:
        """Gives up what has not been written."""
        self._closing.set()
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
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

    def _write(self, order: Order, started: float) -> None:
        snapshot, known = order.pinned, self._written.get((order.checkpoint, order.rank))
        if known is not None and self._is_there(known):
            return self._say("written", order, started, **known.to_dict())
        if snapshot is None or snapshot.meta.checkpoint != order.checkpoint:
            why = "its buffer was not free, or was overwritten before it could be pinned"
            return self._say_unwritten(order, started, why)
        # Beside the write, not before it: the disk would have nothing to do meanwhile.
        with ThreadPoolExecutor(1, "digests") as pool:
            digests = pool.submit(partial_digests, snapshot.fragments())
            rank_file = self._write_file(order, snapshot, started)
        if rank_file is not None:
            meta = snapshot.meta
            try:
                snapshot.check(rank_file.blocks)
            except DamagedFile as error:
                self._storage.remove(meta.checkpoint.rank_file(meta.rank, meta.world_size))
                return self._say_unwritten(order, started, f"its snapshot in memory is damaged: {error}")
            draft = Draft.from_dict(meta.draft) if meta.draft else None
            # All of them: their rank tells the newest after its next step, and of those before nobody may have heard either.
            arguments = (meta.checkpoint, meta.rank, meta.world_size, rank_file, digests.result(), draft, meta.events)
            written = self._written[order.checkpoint, order.rank] = Written(*arguments)
            if len(self._written) > _REMEMBERED:
                del self._written[next(iter(self._written))]
            self._say("written", order, started, **written.to_dict())

    def _is_there(self, written: Written) -> bool:
        try:
            path = written.checkpoint.rank_file(written.rank, written.world_size)
            return self._storage.size(path) == written.rank_file.num_bytes
        except (FileNotFoundError, StorageError):
            return False

    def _write_file(self, order: Order, snapshot: Snapshot, started: float) -> RankFile | None:
        """Until storage takes it. None when this writer is closed before: that is told here."""
        backoff = Backoff()
        while True:
            try:
                return self._try(snapshot)
            except StorageError as error:
                pause_s = backoff.next()
                if backoff.failures == 1 or backoff.failures % _TOLD_EVERY == 0:
                    since = f"for {time.time() - started:.0f} s" if backoff.failures > 1 else "and is tried again"
                    message = f"step {order.checkpoint.step} cannot be made durable {since}; training goes on: {error}"
                    self._say("incident", order, started, **{"class": "storage", "message": message})
                if self._closing.wait(pause_s):
                    self._say_unwritten(order, started, str(error))
                    return None

    def _try(self, snapshot: Snapshot) -> RankFile:
        meta = snapshot.meta
        arguments = (self._storage, meta.checkpoint, meta.rank, meta.world_size, snapshot.payload, meta.header_bytes)
        try:
            return write_payload(*arguments)
        except FileExistsError:
            if self._storage.exists(meta.checkpoint.manifest):
                raise  # it is committed: nothing of it is ever written again
            # Of an earlier try that only seemed to fail, or of an agent that ended: nobody else writes for this attempt.
            self._storage.remove(meta.checkpoint.rank_file(meta.rank, meta.world_size))
            return write_payload(*arguments)

    def _say_unwritten(self, order: Order, started: float, why: str) -> None:
        self._say("unwritten", order, started, checkpoint=asdict(order.checkpoint), message=why)

    def _say(self, kind: str, order: Order, started: float, **data: Any) -> None:
        where = (order.checkpoint.attempt, order.rank, order.checkpoint.step, "save")
        self._emit(Event(kind, *where, started, time.time() - started, data))
