"""Hashes snapshots where they lie, behind the ranks' backs: a thread of the node agent, at the lowest priority.

From then on a changed bit is noticed by whoever reads the snapshot. The ranks could hash while they copy, but they would be waited for:
the optimizer's next step must not begin before the copy has ended.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.checkpoint.snapshot import hash_snapshot

_NICE = 19
_log = logging.getLogger(__name__)


class SnapshotHasher:
    """The newest snapshot of every rank. One that is overwritten before its turn comes has no digest."""

    def __init__(self, mappings: Mappings) -> None:
        self._mappings = mappings
        self._orders: dict[int, Path] = {}
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="snapshot-hasher", daemon=True)
        self._thread.start()

    def order(self, path: Path, rank: int) -> None:
        """Returns at once."""
        with self._changed:
            self._orders[rank] = path
            self._changed.notify_all()

    def close(self) -> None:
        """Gives up what is under way."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (path := self._take()) is not None:
            try:
                hash_snapshot(path, lambda: self._is_closing, self._mappings)
            except OSError as error:  # no memory to map it: it stays without a digest
                _log.warning("hashing %s: %s", path, error)

    def _take(self) -> Path | None:
        """None when it is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._orders or self._is_closing)
            return None if self._is_closing else self._orders.pop(next(iter(self._orders)))
