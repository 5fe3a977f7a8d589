"""Asks a cluster how a driver's job stands, for verbs that have only the run folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from zerofleet.launch.backends.ray_jobs import ClusterUnreachable, JobApiError, RayJobs
from zerofleet.launch.drivers import JobRecord
from zerofleet.trainer.errors import UserError

ASK_INTERVAL_S = 2.0
"""A job is not asked about more often."""
_TIMEOUT_S = 5.0
_PATIENCE_S = 30.0
"""An address that did not answer is not asked again for so long by this process: `list` may show many runs of it."""

_unreachable: dict[str, tuple[float, str]] = {}
"""By address: until when it is not asked again (monotonic seconds), and why it did not answer."""


@dataclass(frozen=True)
class JobAnswer:
    """How a driver's job stands. `unknown`: the cluster has no such job; `unreachable`: it cannot be asked."""

    state: Literal["alive", "over", "unknown", "unreachable"]
    detail: str
    """Ray's status, and why a job failed; or why the cluster cannot be asked."""

    def __str__(self) -> str:
        """The end of a sentence whose subject is the job."""
        if self.state == "unknown":
            return "is unknown to the cluster, which was started anew since"
        return f"cannot be asked ({self.detail})" if self.state == "unreachable" else f"is {self.detail}"


class DriverJob:
    """A driver's job, asked about when somebody wants to know."""

    def __init__(self, record: JobRecord) -> None:
        self.record = record
        self._asked_at = -ASK_INTERVAL_S
        self._answer = JobAnswer("unreachable", "it was not asked")

    @property
    def answer(self) -> JobAnswer:
        """Not older than two seconds."""
        now = time.monotonic()
        if now - self._asked_at >= ASK_INTERVAL_S:
            self._answer, self._asked_at = self._ask(now), now
        return self._answer

    def log(self) -> str:
        """What it has written so far. Raises UserError, JobApiError when the cluster cannot be asked."""
        return self._jobs().log(self.record.job)

    def end(self) -> None:
        """Ends it before it has begun to drive. Raises UserError, JobApiError when the cluster cannot be asked."""
        self._jobs().stop(self.record.job)

    def _jobs(self) -> RayJobs:
        return RayJobs(self.record.address, timeout_s=_TIMEOUT_S)

    def _ask(self, now: float) -> JobAnswer:
        until, reason = _unreachable.get(self.record.address, (now, ""))
        if now < until:
            return JobAnswer("unreachable", reason)
        try:
            job = self._jobs().job(self.record.job)
        except (UserError, JobApiError) as error:
            is_silent = isinstance(error, ClusterUnreachable)
            reason = (
                "the cluster does not answer: its head is lost, or not to be reached from here"
                if is_silent
                else str(error)
            )
            _unreachable[self.record.address] = now + _PATIENCE_S, reason
            return JobAnswer("unreachable", reason)
        if job is None:
            return JobAnswer("unknown", "")
        return JobAnswer("over" if job.is_over else "alive", job.said)
