"""What the command line knows of a driver that it has started, and of a place where drivers run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from zerofleet.launch.config import JobConfig
from zerofleet.trainer.driver_records import DriverRecord
from zerofleet.trainer.run_folder import RunFolder


class DriverHandle(Protocol):
    """A driver that this command has started."""

    @property
    def name(self) -> str:
        """What it is, for people: its process or its job."""

    @property
    def log_place(self) -> str:
        """Where its log is."""

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code (negative: the signal that killed it), or None when it still runs after so many seconds."""

    def is_behind(self, record: DriverRecord) -> bool:
        """Whether it is this driver that made the claim."""

    def how_it_ended(self, code: int) -> str:
        """Half a sentence: `ended with exit code 1`."""

    def last_error(self) -> str:
        """The last line of its log that says an error; empty when there is none."""

    def log_tail(self) -> str:
        """The last lines of its log."""


class Backend(Protocol):
    """A place where drivers run."""

    def check(self, job: JobConfig, is_new: bool) -> str:
        """Whether the job, a new run or one that goes on, can run there; before anything is created. Returns what the user should know, which may be nothing.
        Raises UserError."""

    def start(self, run: RunFolder, storage_url: str, overrides: Sequence[str], after: int) -> DriverHandle:
        """Starts the run's next driver; that of number `after` and those before it were found gone. Raises ZerofleetError."""


def last_error_line(log: str) -> str:
    """The last line of a log that says an error; empty when there is none."""
    return next((line for line in reversed(log.splitlines()) if line.strip().startswith("error: ")), "").strip()
