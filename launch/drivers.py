"""What a run's drivers leave behind: their claims, their jobs, their logs, and the job with the overrides of all resumes.

drivers/0001.job.json is written before a cluster hears of driver 1, exclusively: {"backend", "address", "job", "submitted_at"}. The
driver, once it runs there, claims drivers/0001.json as any other.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

import xxhash

from zerofleet.launch.config import JobConfig, override_job, parse_job
from zerofleet.trainer.driver_records import DriverRecord, driver_records
from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.run_folder import RunFolder

__all__ = [
    "DriverRecord",
    "JobRecord",
    "driver_log",
    "driver_records",
    "effective_job",
    "job_records",
    "next_number",
    "requests_before",
    "run_namespace",
]


@dataclass(frozen=True)
class JobRecord:
    """A driver that was handed to a cluster, as its job `job`. `address` is where that cluster is asked about it."""

    number: int
    backend: str
    address: str
    job: str
    submitted_at: float
    """Unix seconds."""

    @property
    def path(self) -> str:
        return f"drivers/{self.number:04d}.job.json"


def job_records(run: RunFolder) -> list[JobRecord]:
    """Of all drivers that were handed to a cluster, oldest first. Raises StorageError when one is damaged."""
    names = [name for name in run.storage.list("drivers") if re.fullmatch(r"\d{4,}\.job\.json", name)]
    return [_read(run, name) for name in names]


def _read(run: RunFolder, name: str) -> JobRecord:
    path = f"drivers/{name}"
    try:
        return JobRecord(number=int(name.partition(".")[0]), **json.loads(run.storage.read(path)))
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{run.storage.url}/{path} is no record of a driver's job ({error}): restore the file"
        ) from error


def write_job_record(run: RunFolder, record: JobRecord) -> None:
    """Takes the driver's number for the job. Raises UserError when another has it."""
    facts = asdict(record)
    del facts["number"]
    try:
        run.storage.create(record.path, json.dumps(facts, indent=1).encode())
    except FileExistsError as error:
        raise UserError(
            f"run {run.name!r} is being submitted by somebody else at this moment: that one has it"
        ) from error


def next_number(run: RunFolder) -> int:
    """Of the driver that comes next: no claim and no job has it."""
    names = [name for name in run.storage.list("drivers") if re.fullmatch(r"\d{4,}(\.job)?\.json", name)]
    return max((int(name.partition(".")[0]) for name in names), default=0) + 1


def driver_log(number: int) -> str:
    """Path of a driver's log in the run folder."""
    return f"logs/driver-{number:04d}.log"


def requests_before(run: RunFolder) -> int:
    """The newest request that was made before the newest driver took the run: later ones are for it."""
    return next((record.requests for record in reversed(driver_records(run))), 0)


def effective_job(run: RunFolder) -> JobConfig:
    """job.yaml with the overrides of every resume, in their order, and the storage where the run lies now."""
    overrides = [override for record in driver_records(run) for override in record.overrides]
    job = override_job(parse_job(run.job_yaml(), f"{run.storage.url}/job.yaml"), overrides)
    url = run.storage.path() if run.storage.is_local else run.storage.url
    return job.model_copy(update={"run": job.run.model_copy(update={"storage": url.rpartition("/")[0]})})


def run_namespace(run: RunFolder) -> str:
    """Of the run's actors in Ray, the same for all its drivers. Where and when the first one was started tells it from other users' runs of the same
    name, whose storage may have the same path on another machine."""
    first = driver_records(run)[0]
    facts = f"{run.storage.identity} {first.host} {first.pid} {first.started_at}"
    return f"{run.name}-{xxhash.xxh3_64_hexdigest(facts.encode())}"
