"""What a run's drivers leave behind: their claims, their logs, and the job with the overrides of all resumes."""

from __future__ import annotations

from zerofleet.launch.config import JobConfig, override_job, parse_job
from zerofleet.trainer.driver_records import DriverRecord, driver_records
from zerofleet.trainer.run_folder import RunFolder

__all__ = ["DriverRecord", "driver_log", "driver_records", "effective_job", "requests_before"]


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
