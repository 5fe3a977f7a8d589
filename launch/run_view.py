"""A run as it stands now: its events, its job with all overrides, and whether whoever trains it lives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from zerofleet.launch.backends.jobs import DriverJob
from zerofleet.launch.config import JobConfig
from zerofleet.launch.drivers import DriverRecord, driver_records, effective_job, job_records
from zerofleet.launch.follow import EventTail
from zerofleet.launch.progress import Progress
from zerofleet.trainer.driver_records import OTHER_HOST_SILENCE_S
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import AttemptRecord, RunFolder

_DRIVER_SILENCE_S = 30.0
"""A driver has a heartbeat every 10 s; of one that is alive and says nothing for so long, it is told."""
_TORCHRUN_SILENCE_S = 600.0
"""torchrun on another host counts as dead when its last event is older; it has no heartbeat, so this is above any step."""


@dataclass
class RunView:
    """`tail` goes on where this reading ended."""

    run: RunFolder
    job: JobConfig
    driver: DriverRecord | None
    """The newest."""
    attempts: list[AttemptRecord]
    progress: Progress
    tail: EventTail
    submitted: DriverJob | None = None
    """The newest driver's job, where that was handed to a cluster; it may not have begun yet."""

    @staticmethod
    def of(run: RunFolder, also: Callable[[Event], None] | None = None) -> RunView:
        """`also` hears every event too, the ranks' signs of life among them."""
        drivers, attempts, job = driver_records(run), run.attempts(), effective_job(run)
        tail = EventTail(run, has_signs=also is not None)
        by_torchrun = frozenset(a.attempt for a in attempts if not any(driver.claimed(a) for driver in drivers))
        progress = Progress(job.train.steps, by_torchrun)
        for event in tail.poll():
            progress.apply(event)
            if also is not None:
                also(event)
        newest, jobs = drivers[-1] if drivers else None, job_records(run)
        is_newest = bool(jobs) and (newest is None or jobs[-1].number >= newest.number)
        return RunView(run, job, newest, attempts, progress, tail, DriverJob(jobs[-1]) if is_newest else None)

    @property
    def is_driven(self) -> bool:
        """Whether a driver lives that will bring the run to a final state."""
        is_known = self.submitted is None or (self.driver is not None and self.driver.is_this_process)
        if is_known or self._is_long_over:
            return self._says_something
        assert self.submitted is not None
        answer = self.submitted.answer.state
        return self._says_something if answer == "unreachable" else answer == "alive"

    @property
    def _is_long_over(self) -> bool:
        """Whether no cluster need be asked: `list` may have many runs."""
        silent_s = time.time() - self.progress.last_event_at
        return self.progress.is_final and not self.driver_started_after_last_event and silent_s > OTHER_HOST_SILENCE_S

    @property
    def _says_something(self) -> bool:
        """Whether the newest driver lives as far as this host and the run folder can tell. One on another host is gone when it has said so."""
        if self.submitted is not None and not self.has_begun:
            return time.time() - self.submitted.record.submitted_at < OTHER_HOST_SILENCE_S
        if self.driver is None or (not self.driver.is_here and self.progress.ended_since(self.driver.started_at)):
            return False
        return self.driver.is_alive(self.progress.last_event_at)

    @property
    def has_begun(self) -> bool:
        """Whether the newest driver has claimed the run: one that was handed to a cluster waits there first."""
        if self.submitted is None:
            return self.driver is not None
        return self.driver is not None and self.driver.number == self.submitted.record.number

    @property
    def attempt(self) -> int:
        """The newest that was claimed; 0 when there is none."""
        return self.attempts[-1].attempt if self.attempts else 0

    @property
    def torchrun(self) -> AttemptRecord | None:
        """The newest attempt, when torchrun made it."""
        return self.attempts[-1] if self.attempt in self.progress.torchrun_attempts else None

    @property
    def is_torchrun(self) -> bool:
        """Whether torchrun trains the run now."""
        record = self.torchrun
        if record is None or record.lives_here:
            return record is not None
        said_at = max(self.progress.last_event_at, record.claimed_at)
        return not record.is_here and not self.progress.is_final and time.time() - said_at < _TORCHRUN_SILENCE_S

    @property
    def state(self) -> str:
        """The controller's state, or what it cannot say itself.

        `DEAD`: nobody trains the run and no final state was reached. `TORCHRUN`: torchrun trains it, which cannot be asked.
        """
        if self.is_torchrun:
            return "TORCHRUN"
        if self.is_driven:
            return "PENDING" if self.driver_started_after_last_event else self.progress.state
        return self.progress.state if self.progress.is_final else "DEAD"

    @property
    def driver_started_after_last_event(self) -> bool:
        if self.submitted is not None and not self.has_begun:
            return True
        return self.driver is not None and self.driver.started_at > self.progress.last_event_at

    @property
    def failed_by_mistake(self) -> bool:
        """Whether it ended by the user's mistake with nothing that could be resumed: resumed, it would fail the same."""
        return (
            self.state == "FAILED"
            and bool(self.progress.user_error)
            and not (self.progress.step or self.run.checkpoints())
        )

    @property
    def why_dead(self) -> str:
        """Why a run of which the folder only says that it has ended without a final state did so; empty where that is not known."""
        if self.state != "DEAD" or self.submitted is None:
            return ""
        answer = self.submitted.answer
        if answer.state == "unknown":
            return "its driver was lost with the head of its cluster, which was started anew since"
        if answer.state == "unreachable":
            return f"its driver is silent, and the cluster cannot be asked ({answer.detail})"
        return f"its driver's job {answer}"

    def describe_driver(self) -> str:
        """One sentence about who drives the run."""
        by_torchrun, driver = self.torchrun, self.driver
        if by_torchrun is not None and (
            self.is_torchrun or driver is None or driver.started_at < by_torchrun.claimed_at
        ):
            alive = "alive" if self.is_torchrun else "gone"
            number, pid, host = by_torchrun.attempt, by_torchrun.pid, by_torchrun.host
            return f"started with torchrun: rank 0 of attempt {number} is process {pid} on {host}, {alive}"
        alive = "gone"
        if self.is_driven:
            silent_s = time.time() - max(self.progress.last_event_at, driver.started_at if driver is not None else 0.0)
            is_heard = silent_s < _DRIVER_SILENCE_S or not self.has_begun
            alive = "alive" if is_heard else f"alive, silent for {silent_s:.0f} s"
        if (submitted := self.submitted) is not None:
            record = submitted.record
            where = f" on {driver.host}, pid {driver.pid}" if driver is not None and self.has_begun else ""
            return f"driver {record.number}{where}, {alive}: job {record.job} on {record.address} {submitted.answer}"
        if driver is None:
            return "no driver has taken it"
        return f"driver {driver.number} on {driver.host}, pid {driver.pid}, {alive}"
