"""A run as it stands now: its events, its job with all overrides, and whether its driver lives."""

from __future__ import annotations

from dataclasses import dataclass

from zerofleet.launch.config import JobConfig
from zerofleet.launch.drivers import DriverRecord, driver_records, effective_job
from zerofleet.launch.follow import EventTail
from zerofleet.launch.progress import Progress
from zerofleet.trainer.run_folder import RunFolder


@dataclass
class RunView:
    """`tail` goes on where this reading ended."""

    run: RunFolder
    job: JobConfig
    driver: DriverRecord | None
    progress: Progress
    tail: EventTail

    @staticmethod
    def of(run: RunFolder) -> RunView:
        records, job, tail = driver_records(run), effective_job(run), EventTail(run)
        progress = Progress(job.train.steps)
        for event in tail.poll():
            progress.apply(event)
        return RunView(run, job, records[-1] if records else None, progress, tail)

    @property
    def is_driven(self) -> bool:
        """Whether a driver lives that will bring the run to a final state."""
        return self.driver is not None and self.driver.is_alive(self.progress.last_event_at)

    @property
    def is_torchrun(self) -> bool:
        """Whether torchrun, not a driver, has started the run's attempts."""
        return self.driver is None and self.progress.attempt > 0

    @property
    def state(self) -> str:
        """The controller's state, or what it cannot say itself.

        `DEAD`: no driver lives and no final state was reached. `TORCHRUN`: not ended, and no driver that could be asked.
        """
        if self.is_torchrun and not self.progress.is_final:
            return "TORCHRUN"
        if self.is_driven:
            is_of_earlier_driver = self.progress.is_final and self.driver_started_after_last_event
            return "PENDING" if is_of_earlier_driver else self.progress.state
        return self.progress.state if self.progress.is_final else "DEAD"

    @property
    def driver_started_after_last_event(self) -> bool:
        return self.driver is not None and self.driver.started_at > self.progress.last_event_at

    def describe_driver(self) -> str:
        """One sentence about who drives the run."""
        if self.driver is None:
            return "started with torchrun, without a driver" if self.is_torchrun else "no driver has taken it"
        alive = "alive" if self.is_driven else "gone"
        return f"driver {self.driver.number} on {self.driver.host}, pid {self.driver.pid}, {alive}"
