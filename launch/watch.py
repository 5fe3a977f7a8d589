"""Follows a run whose driver this command started, to its end, a detach or a stop."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from zerofleet.launch.backends.handle import DriverHandle
from zerofleet.launch.drivers import driver_records
from zerofleet.launch.exit_codes import INTERRUPTED, NOT_FOUND, OK, RUN_FAILED, TIMEOUT, USER_MISTAKE
from zerofleet.launch.follow import EventTail, poll_interval_s
from zerofleet.launch.progress import Progress
from zerofleet.launch.screens import Screen, choose_screen
from zerofleet.launch.summary import write_summary
from zerofleet.launch.words import command, run_argument
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import RunFolder

_CLAIM_TIMEOUT_S = 60.0
"""How long `leave` waits for the driver's first sign of life."""


@dataclass
class Watch:
    """A run, its driver, and how far its events have been read."""

    run: RunFolder
    driver: DriverHandle
    tail: EventTail
    progress: Progress
    as_json: bool
    _is_blind: bool = False
    """Whether storage did not answer when it was last asked."""

    def follow(self) -> int:
        """Shows the run until its driver ends. Returns the exit code; 130 when detached."""
        while True:
            try:
                with choose_screen(self.run.name, self.as_json) as screen:
                    driver_code = self._until_exit(screen)
                return self._conclude(driver_code)
            except KeyboardInterrupt:
                if not asked_to_stop():
                    self._say_detached()
                    return INTERRUPTED
                self.run.request("stop")
                sys.stderr.write("stopping: the run saves a checkpoint at the end of its step\n")

    def leave(self) -> int:
        """Returns when the driver has claimed the run, or says why it ended instead."""
        deadline = time.monotonic() + _CLAIM_TIMEOUT_S
        while time.monotonic() < deadline:
            driver_code = self.driver.wait(poll_interval_s(self.run))
            if any(map(self.driver.is_behind, driver_records(self.run))):
                break
            if driver_code is not None:
                return self._conclude(driver_code)
        self._say_detached()
        return OK

    def _until_exit(self, screen: Screen) -> int:
        interval = poll_interval_s(self.run)
        while True:
            driver_code = self.driver.wait(interval)
            for event in self._read():  # after the exit was seen, this reads the rest
                self.progress.apply(event)
                screen.event(event, self.progress)
            screen.tick(self.progress)
            if driver_code is not None:
                return driver_code

    def _read(self) -> list[Event]:
        """New events. Storage that is down ends neither the run nor the watching: what was missed is read later."""
        try:
            events = self.tail.poll()
        except StorageError as error:
            if not self._is_blind:
                sys.stderr.write(f"the run cannot be followed until storage answers; it goes on: {error}\n")
            self._is_blind = True
            return []
        self._is_blind = False
        return events

    def _conclude(self, driver_code: int) -> int:
        if not self.progress.is_final:
            if driver_code == USER_MISTAKE and (mistake := self.driver.last_error()):
                sys.stderr.write(f"{mistake}\n")  # it never drove the run: another does
                return driver_code
            sys.stderr.write(
                f"error: the driver of run {self.run.name} {self.driver.how_it_ended(driver_code)} without finishing it. The end "
                f"of its log ({self.driver.log_place}):\n{self.driver.log_tail()}\n"
                f"go on with: {command('resume', run_argument(self.run))}\n"
            )
            return driver_code if driver_code in (USER_MISTAKE, TIMEOUT, NOT_FOUND) else RUN_FAILED
        write_summary(self.run, self.progress, self.as_json)
        if driver_code > 0:
            return driver_code
        return RUN_FAILED if self.progress.state == "FAILED" else OK

    def _say_detached(self) -> None:
        name = run_argument(self.run)
        sys.stderr.write(
            f"detached: run {self.run.name} goes on ({self.driver.name})\n"
            f"  see it:  {command('status', name)}\n"
            f"  its log: {command('logs', '-f', name)}\n"
            f"  stop it: {command('stop', name)}\n"
        )


def asked_to_stop() -> bool:
    """After an interrupt: on a terminal, asks; elsewhere an interrupt detaches."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        sys.stderr.write("\nDetach (the run goes on) or stop it with a checkpoint? [d]etach / [s]top: ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower().startswith("s")
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return False
