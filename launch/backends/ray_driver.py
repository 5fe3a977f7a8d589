"""A driver that is a job of a Ray cluster, as the command line that has submitted it sees it."""

from __future__ import annotations

import time

from zerofleet.launch.backends.handle import last_error_line
from zerofleet.launch.backends.ray_jobs import Job, RayJobs
from zerofleet.launch.drivers import JobRecord, driver_log
from zerofleet.launch.exit_codes import OK, RUN_FAILED
from zerofleet.trainer.driver_records import OTHER_HOST_SILENCE_S, DriverRecord
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.run_folder import RunFolder

_ASK_INTERVAL_S = 1.0
_TAIL_LINES = 20


class RayDriver:
    """Asks the job API how the job stands. A cluster that does not answer for a minute is taken for lost."""

    def __init__(self, jobs: RayJobs, record: JobRecord, run: RunFolder) -> None:
        self._jobs, self._record, self._run = jobs, record, run
        self._asked_at = self._answered_at = time.monotonic()
        self._last: Job | None = None
        self._unreachable = ""

    @property
    def name(self) -> str:
        return f"job {self._record.job} on {self._record.address}"

    @property
    def log_place(self) -> str:
        return f"{self._run.storage.path()}/{driver_log(self._record.number)}"

    def wait(self, timeout_s: float) -> int | None:
        time.sleep(timeout_s)
        if time.monotonic() - self._asked_at < _ASK_INTERVAL_S:
            return None
        try:
            self._last = self._jobs.job(self._record.job)
        except ZerofleetError as error:
            self._asked_at = time.monotonic()
            if self._asked_at - self._answered_at < OTHER_HOST_SILENCE_S:
                return None
            self._unreachable = str(error)
            return RUN_FAILED
        self._asked_at = self._answered_at = time.monotonic()
        if self._last is None:
            return RUN_FAILED
        return _exit_code(self._last) if self._last.is_over else None

    def is_behind(self, record: DriverRecord) -> bool:
        return record.number == self._record.number

    def how_it_ended(self, code: int) -> str:
        if self._unreachable:
            return f"was lost with its cluster ({self._unreachable})"
        if self._last is None:
            return f"({self.name}) is unknown to the cluster, which was started anew,"
        return f"({self.name}) is {self._last.said}"

    def last_error(self) -> str:
        return last_error_line(self.log_tail())

    def log_tail(self) -> str:
        try:
            text = self._jobs.log(self._record.job)
        except ZerofleetError:
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])


def _exit_code(job: Job) -> int:
    """`ray job stop` is a stop like another: whether it was done in time, the run folder says."""
    if job.status in ("SUCCEEDED", "STOPPED"):
        return OK
    return RUN_FAILED if job.exit_code in (None, OK) else int(job.exit_code or RUN_FAILED)
