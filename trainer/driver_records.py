"""The claims of a run's drivers: what tells who drives it, here and under torchrun.

drivers/0001.json is created by the driver itself, exclusively: {"host", "pid", "pid_created", "started_at", "overrides", "requests"}.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import dataclass

import psutil

from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.run_folder import AttemptRecord, RunFolder

OTHER_HOST_SILENCE_S = 60.0
"""A driver on another host counts as dead when its last event is older; it sends a heartbeat every 10 s."""


@dataclass(frozen=True)
class DriverRecord:
    """One driver's claim. `pid_created` (Unix seconds) tells its process from a later one with the same number."""

    number: int
    host: str
    pid: int
    pid_created: float
    started_at: float
    overrides: tuple[str, ...]
    requests: int = 0
    """Number of the newest request when it took the run: later ones are for it."""

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_this_process(self) -> bool:
        return self.is_here and self.pid == os.getpid() and abs(psutil.Process().create_time() - self.pid_created) < 1

    def is_alive(self, last_event_at: float) -> bool:
        """Whether the process is there; on another host, whether it said something lately (Unix seconds)."""
        if not self.is_here:
            return time.time() - max(last_event_at, self.started_at) < OTHER_HOST_SILENCE_S
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.pid_created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def claimed(self, attempt: AttemptRecord) -> bool:
        """Whether this driver made the attempt."""
        return (attempt.host, attempt.pid) == (self.host, self.pid) and attempt.claimed_at >= self.started_at


def driver_records(run: RunFolder) -> list[DriverRecord]:
    """All claims, oldest first."""
    names = [name for name in run.storage.list("drivers") if re.fullmatch(r"\d{4,}\.json", name)]
    return [_read(run, name) for name in names]


def _read(run: RunFolder, name: str) -> DriverRecord:
    """Raises StorageError when the claim is damaged."""
    path = f"drivers/{name}"
    try:
        record = json.loads(run.storage.read(path))
        overrides = tuple(record.pop("overrides"))
        return DriverRecord(number=int(name.removesuffix(".json")), overrides=overrides, **record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{run.storage.url}/{path} is no driver's claim ({error}): remove it once no driver of the run lives"
        ) from error
