"""Runs the driver on this machine, as a process of its own that outlives the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from zerofleet.launch.backends.handle import last_error_line
from zerofleet.launch.drivers import DriverRecord, driver_log, next_number
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.storage import storage_errors

DRIVER_MODULE = "zerofleet.launch.driver"


class LocalDriver:
    """A driver that this process has started."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.number = number
        """The claim under drivers/ that it will make."""
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def name(self) -> str:
        return f"pid {self.pid}"

    @property
    def log_place(self) -> str:
        return str(self.log)

    def is_behind(self, record: DriverRecord) -> bool:
        return record.pid == self.pid

    def how_it_ended(self, code: int) -> str:
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def wait(self, timeout_s: float | None) -> int | None:
        """Its exit code (negative: the signal that killed it), or None when it still runs after `timeout_s` seconds (None: waits)."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_stop(self) -> None:
        """It saves and ends."""
        self._process.terminate()

    def ask_to_end(self) -> None:
        """At once, whether it was asked to stop before or not."""
        # The first is a stop, which saves, the second ends at once: two that differ, since of one that waits already the kernel keeps
        # no second.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._process.send_signal(number)

    def end(self, timeout_s: float) -> None:
        """Asks it to end at once, kills it when it has not within `timeout_s` seconds."""
        self.ask_to_end()
        if self.wait(timeout_s) is None:
            self._process.kill()
            self._process.wait()

    def last_error(self) -> str:
        """The last line of its log that says an error; empty when there is none."""
        return last_error_line(self.log_tail())

    def log_tail(self, num_lines: int = 20) -> str:
        """The last lines of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 64 * 1024))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-num_lines:])


def start_driver(
    run: RunFolder,
    storage_url: str,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> LocalDriver:
    """Starts the driver in a session of its own, so that Ctrl-C on the command line does not reach it. `environment` is added to
    this process's."""
    number = next_number(run)
    log = _log_file(run, number)
    command = [sys.executable, "-P", "-u", "-m", DRIVER_MODULE, storage_url, run.name]
    for override in overrides:
        command += ["--override", override]
    with storage_errors("writing to", str(log)), log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment},
        )
    return LocalDriver(number, process, log)


def _log_file(run: RunFolder, number: int) -> Path:
    """In the run folder; beside this machine's other temporary files when the run folder is remote."""
    name = driver_log(number)
    if not run.storage.is_local:
        return Path(tempfile.mkdtemp(prefix=f"zerofleet-{run.name}-")) / Path(name).name
    log = run.storage.local_path(name)
    with storage_errors("creating", str(log.parent)):
        log.parent.mkdir(parents=True, exist_ok=True)
    return log
