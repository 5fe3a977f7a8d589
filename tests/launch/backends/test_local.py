"""A driver as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zerofleet.launch.backends.local import LocalDriver
from zerofleet.trainer.process_id import read_stat

pytestmark = pytest.mark.timeout(60)

DRIVER = """
import os, signal, sys, time
from zerofleet.launch.stops import Stops
stops = Stops()
os.kill(os.getpid(), signal.SIGSTOP)  # busy, as far as signals go: what comes meanwhile waits
asked = stops.take()
until = time.monotonic() + 2
while "end" not in asked and time.monotonic() < until:
    asked += stops.take()
sys.exit(7 if asked == ["stop", "end"] else 8)
"""


def test_a_driver_that_is_busy_hears_that_it_is_to_end_at_once():
    process = subprocess.Popen([sys.executable, "-c", DRIVER])
    while read_stat(process.pid).state != "T":
        assert process.poll() is None
        time.sleep(0.01)
    goes_on = threading.Timer(0.5, process.send_signal, [signal.SIGCONT])
    goes_on.start()
    LocalDriver(1, process, Path("driver.log")).end(50)
    goes_on.join()
    assert process.returncode == 7
