"""Who drives a run: each driver claims the next number in `drivers/`, exclusively, before it does anything else."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from zerofleet.launch.drivers import DriverRecord, driver_records, next_number
from zerofleet.launch.progress import Progress
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import RunFolder


@dataclass(frozen=True)
class Handed:
    """A driver that runs as a job of a cluster: what whoever has submitted it tells it."""

    number: int
    """Of its claim, which was taken for it (launch/drivers.py)."""
    after: int
    """The newest driver when it was submitted, which was found gone then; 0 when there was none."""
    address: str
    """`host:port` of the Ray cluster that it runs on, and joins."""


def claim(run: RunFolder, overrides: Sequence[str], handed: Handed | None = None) -> int:
    """Makes this process the run's driver. Returns its number. UserError when another drives the run."""
    # Before the look at who drives: whoever claims meanwhile is seen by it, or has taken this number.
    number = handed.number if handed is not None else next_number(run)
    records = driver_records(run)
    if records and records[-1].is_this_process:
        return records[-1].number  # it began anew: lost_ray.py
    is_known_to_be_gone = handed is not None and bool(records) and records[-1].number <= handed.after
    if records and not is_known_to_be_gone and _is_alive(run, records[-1]):
        raise UserError(
            f"run {run.name!r} is driven by process {records[-1].pid} on {records[-1].host}: stop it first "
            f"(`zerofleet stop {run.name}`), or follow it (`zerofleet logs -f {run.name}`)"
        )
    if handed is not None and records and records[-1].number >= handed.number:
        raise UserError(
            f"run {run.name!r} was taken by driver {records[-1].number} before this one, {handed.number}, had begun"
        )
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": str(ProcessId.own()),
        "started_at": time.time(),
        "overrides": list(overrides),
        "requests": run.newest_request(),
    }
    try:
        run.storage.create(f"drivers/{number:04d}.json", json.dumps(record, indent=1).encode())
    except FileExistsError as error:
        raise UserError(f"run {run.name!r} was taken by another driver at this moment: that one drives it") from error
    return number


def _is_alive(run: RunFolder, record: DriverRecord) -> bool:
    """A driver that cannot be seen from here is known by its events only."""
    if record.is_here and record.process:
        return record.is_alive(0.0)
    standing = Progress(0)
    for event in run.events():
        standing.apply(event)
    return not standing.ended_since(record.started_at) and record.is_alive(standing.last_event_at)
