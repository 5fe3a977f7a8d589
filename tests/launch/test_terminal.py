"""Ctrl-C on a real terminal (a pty): detach or stop."""

import contextlib
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from zerofleet.launch.drivers import driver_records
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

SUBMIT = """
import sys
from zerofleet.launch import cli
from zerofleet.launch.backends import local
local.DRIVER_MODULE = "tests.launch.fake_driver"
sys.exit(cli.main(["submit", "recipe.yaml", "run.name=a"]))
"""


class Terminal:
    """A command on a terminal of its own, with what it has shown so far."""

    def __init__(self, script: str, **environment: str) -> None:
        self._master, slave = pty.openpty()
        setup = (
            "import fcntl, termios, os; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # Ctrl-C reaches the foreground group
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", setup + script],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, **environment, "TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(slave)
        self.shown = ""

    def until(self, text: str) -> None:
        """Reads until `text` has been shown."""
        while text not in self.shown:
            self.shown += os.read(self._master, 65536).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Reads the rest; the exit code."""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(self._master, 65536):
                self.shown += data.decode(errors="replace")
        os.close(self._master)
        return self.process.wait(30)


@pytest.fixture
def terminal(recipe):
    return Terminal(SUBMIT, FAKE_DRIVER="stoppable", PYTHONPATH=str(Path(__file__).parents[2]))


@pytest.fixture
def run(recipe):
    return RunFolder(os.environ["ZEROFLEET_STORAGE"], "a")


def test_live_progress_and_ctrl_c_then_stop(terminal, run):
    terminal.until("loss")
    terminal.type("\x03")
    terminal.until("[d]etach / [s]top: ")
    terminal.type("s\n")
    assert terminal.end() == 0
    assert "a: STOPPED at step" in terminal.shown and "resume" in terminal.shown
    assert RunView.of(run).state == "STOPPED"


@pytest.mark.parametrize("answer", ["d\n", "\n", "\x03"])
def test_ctrl_c_then_detach_leaves_the_run_alone(terminal, run, answer):
    terminal.until("loss")
    terminal.type("\x03")
    terminal.until("[d]etach / [s]top: ")
    terminal.type(answer)
    assert terminal.end() == 130
    assert "detached: run a goes on" in terminal.shown and "Traceback" not in terminal.shown
    driver = psutil.Process(driver_records(run)[-1].pid)
    time.sleep(0.3)
    assert driver.is_running() and run.requests() == []
    run.request("stop")
    driver.wait(20)
