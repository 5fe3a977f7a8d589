"""The claims of a run's drivers: what tells who drives it, here and under torchrun.

drivers/0001.json is created by the driver itself, exclusively: {"host", "pid", "process", "started_at", "overrides", "requests"}.
"""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass

import psutil

from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.process_id import ProcessId, lives
from zerofleet.trainer.run_folder import AttemptRecord, RunFolder

OTHER_HOST_SILENCE_S = 60.0
"""A driver that cannot be seen from here counts as dead when its last event is older; it sends a heartbeat every 10 s."""


@dataclass(frozen=True)
class DriverRecord:
    """One driver's claim."""

    number: int
    host: str
    pid: int
    started_at: float
    overrides: tuple[str, ...]
    requests: int = 0
    """Number of the newest request when it took the run: later ones are for it."""
    process: str = ""
    """A ProcessId; empty in claims by zerofleet up to 0.4."""
    pid_created: float = 0.0
    """In those: the process's birth in Unix seconds."""

    @property
    def is_here(self) -> bool:
        """Whether its process can be seen from here."""
        return ProcessId.parse(self.process).is_here if self.process else self.host == socket.gethostname()

    @property
    def is_this_process(self) -> bool:
        return bool(self.process) and ProcessId.parse(self.process) == ProcessId.own()

    def is_alive(self, last_event_at: float) -> bool:
        """Whether the process is there; where that cannot be seen, whether it said something lately (Unix seconds)."""
        if self.is_here:
            if self.process:
                return ProcessId.parse(self.process).is_alive()
            try:
                born = psutil.Process(self.pid).create_time() if lives(self.pid) else None
            except psutil.NoSuchProcess:  # it ended meanwhile
                born = None
            if born is None or abs(born - self.pid_created) < 1:
                return born is not None
            # It is another one, or the clock was set.
        return time.time() - max(last_event_at, self.started_at) < OTHER_HOST_SILENCE_S

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
        found = DriverRecord(number=int(name.removesuffix(".json")), overrides=overrides, **record)
        if found.process:
            ProcessId.parse(found.process)
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{run.storage.url}/{path} is no driver's claim ({error}): remove it once no driver of the run lives"
        ) from error
