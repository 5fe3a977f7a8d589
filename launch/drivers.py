"""Who drives a run: the claims under drivers/, whether the newest is alive, and the job with the overrides of all resumes.

drivers/0001.json is created by the driver itself, exclusively: {"host", "pid", "pid_created", "started_at", "overrides"}.
"""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass

import psutil

from zerofleet.launch.config import JobConfig, override_job, parse_job
from zerofleet.trainer.run_folder import RunFolder

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

    @property
    def log(self) -> str:
        return driver_log(self.number)

    def is_alive(self, last_event_at: float) -> bool:
        """Whether the process is there; on another host, whether it said something lately (Unix seconds)."""
        if self.host != socket.gethostname():
            return time.time() - max(last_event_at, self.started_at) < OTHER_HOST_SILENCE_S
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.pid_created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def driver_log(number: int) -> str:
    """Path of a driver's log in the run folder."""
    return f"logs/driver-{number:04d}.log"


def driver_records(run: RunFolder) -> list[DriverRecord]:
    """All claims, oldest first."""
    names = [name for name in run.storage.list("drivers") if re.fullmatch(r"\d{4,}\.json", name)]
    return [_read(run, name) for name in names]


def _read(run: RunFolder, name: str) -> DriverRecord:
    record = json.loads(run.storage.read(f"drivers/{name}"))
    return DriverRecord(
        number=int(name.removesuffix(".json")),
        host=record["host"],
        pid=record["pid"],
        pid_created=record["pid_created"],
        started_at=record["started_at"],
        overrides=tuple(record["overrides"]),
    )


def effective_job(run: RunFolder) -> JobConfig:
    """job.yaml with the overrides of every resume, in their order, and the storage where the run lies now."""
    overrides = [override for record in driver_records(run) for override in record.overrides]
    job = override_job(parse_job(run.job_yaml(), f"{run.storage.url}/job.yaml"), overrides)
    url = run.storage.path() if run.storage.is_local else run.storage.url
    return job.model_copy(update={"run": job.run.model_copy(update={"storage": url.rpartition("/")[0]})})
