"""On a real terminal (a pty): Ctrl-C detaches or stops, and `top` is left by a key."""

import contextlib
import os
import pty
import re
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


TOP = """
import sys
from zerofleet.launch import cli
sys.exit(cli.main(["top", "a"]))
"""


@pytest.fixture
def top(recipe, run, zerofleet, drive):
    """`top` of a run that goes on until it is stopped."""
    drive("stoppable")
    assert zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")[0] == 0
    yield Terminal(TOP, PYTHONPATH=str(Path(__file__).parents[2]))
    assert RunView.of(run).is_driven, "the run goes on"
    assert zerofleet("stop", "a")[0] == 0


@pytest.mark.parametrize("key", ["q", "\x03"], ids=["q", "Ctrl-C"])
def test_top_is_live_and_left_by_a_key(top, run, key):
    steps = []
    for _ in range(2):
        top.until("loss")  # what is drawn below the steps
        steps.append(int(re.findall(r"step (\d+)", top.shown)[-1]))
        assert "q leaves; the run goes on" in top.shown
        top.shown = ""
    assert steps[0] < steps[1]
    top.type(key)
    assert top.end() == 0 and "Traceback" not in top.shown
    assert "\x1b[?1049l" in top.shown, "the screen is as it was"
    assert "loss" in top.shown.split("\x1b[?1049l")[-1], "and the last picture below"
    assert run.requests() == []
