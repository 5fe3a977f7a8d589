"""The driver of one silo as the run's driver sees it: a process, and a run folder to read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping

from zerofleet.launch.backends.local import LocalDriver, start_driver
from zerofleet.launch.config import JobConfig
from zerofleet.launch.drivers import driver_records, effective_job
from zerofleet.launch.follow import EventTail
from zerofleet.launch.progress import Progress
from zerofleet.launch.silos.environment_file import read_environment
from zerofleet.launch.stops import PARENT
from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.events import Event
from zerofleet.trainer.frozen import flatten
from zerofleet.trainer.run_folder import RunFolder

_LOOK_S = 0.1
_END_S = 20.0
"""How long a driver may take to end at once."""


class SiloProcess:
    """Started again by `start`, as often as asked for."""

    def __init__(
        self,
        name: str,
        run: RunFolder,
        job: JobConfig,
        environment: Mapping[str, str],
        hear: Callable[[str, Event], None],
        environment_file: str | None = None,
    ) -> None:
        """`hear` is called with the silo's name and each of its events; `environment_file` is read at every start, and not kept."""
        self.name, self.run, self._hear = name, run, hear
        self._job, self._environment, self._environment_file = job, environment, environment_file
        self._tail, self._progress = EventTail(run), Progress(job.train.steps)
        self._driver: LocalDriver | None = None
        self._code: int | None = None
        self._num_starts = 0

    def start(self) -> None:
        """Makes the silo's run folder where there is none, else goes on with it under the job as it is now. Raises ZerofleetError."""
        overrides: list[str] = []
        if self.run.storage.exists("job.yaml"):
            self._await_end_of_the_last()
            overrides = changes(effective_job(self.run), self._job)
        else:
            self.run.create(self._job.to_yaml())
        own = read_environment(self.name, self._environment_file)
        environment = {**own, **self._environment, PARENT: str(os.getpid())}
        self.look()
        self._progress.new_driver(self._job.train.steps)
        self._code, self._num_starts = None, self._num_starts + 1
        self._driver = start_driver(self.run, self._job.run.storage, overrides, environment)

    def _await_end_of_the_last(self) -> None:
        """A driver whose parent was killed saves and ends."""
        deadline = time.monotonic() + self._job.cluster.stop_timeout_s + _END_S
        while (records := driver_records(self.run)) and records[-1].is_alive(self._progress.last_event_at):
            if time.monotonic() > deadline:
                pid, host = records[-1].pid, records[-1].host
                raise UserError(
                    f"silo {self.name} is still driven by process {pid} on {host}, of a run before: end it first"
                )
            time.sleep(_LOOK_S)
            self.look()

    def look(self) -> None:
        """Takes in what it has said since; nothing while storage does not answer."""
        with contextlib.suppress(StorageError):
            for event in self._tail.poll():
                self._progress.apply(event)
                self._hear(self.name, event)

    @property
    def is_running(self) -> bool:
        return self._driver is not None and self._code is None

    def has_just_ended(self) -> bool:
        """True once for each start."""
        if not self.is_running:
            return False
        assert self._driver is not None
        self._code = self._driver.wait(0)
        self.look()
        return self._code is not None

    @property
    def state(self) -> str:
        """As its driver said it; `DEAD` when it ended without a word."""
        return self._progress.state if self._progress.is_final else "DEAD"

    @property
    def is_killed(self) -> bool:
        return self._code is not None and self._code < 0 and not self._progress.is_final

    @property
    def may_start_again(self) -> bool:
        return self._num_starts <= self._job.cluster.max_failures

    @property
    def how_it_ended(self) -> str:
        """For sentences that begin with who."""
        if self._code is not None and self._code < 0:
            return f"was killed by {signal.Signals(-self._code).name}"
        why = self._progress.user_error or self._progress.why or (self._driver.last_error() if self._driver else "")
        return f"ended {self.state} ({why})" if why else f"ended {self.state}"

    def ask_to_stop(self) -> None:
        if self.is_running and self._driver is not None:
            self._driver.ask_to_stop()

    def ask_to_end(self) -> None:
        if self.is_running and self._driver is not None:
            self._driver.ask_to_end()

    def end(self) -> None:
        """At once, when it still runs."""
        if self.is_running and self._driver is not None:
            self._driver.end(_END_S)


def changes(before: JobConfig, after: JobConfig) -> list[str]:
    """The overrides that make one job the other, of what a run may change while it lives."""
    old, new = flatten(before.model_dump(mode="json")), flatten(after.model_dump(mode="json"))
    free = (
        path for path in new if path.partition(".")[0] in ("train", "checkpoint", "cluster", "tracking", "deepspeed")
    )
    return [f"{path}={json.dumps(new[path])}" for path in free if new[path] != old.get(path)]
