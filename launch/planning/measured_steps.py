"""A few steps of a job on this machine: how long they take, and how much memory a rank has at its peak."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from zerofleet.launch.backends.local import LocalDriver, start_driver
from zerofleet.launch.commands.submit import create_run
from zerofleet.launch.config import JobConfig, override_job
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.run_folder import RunFolder

STEPS = 3
"""That count; one before them warms up."""
_LOOK_S = 0.2
_TIMEOUT_S = 1800.0
_END_TIMEOUT_S = 20.0


class CalibrationFailed(ZerofleetError):
    """The steps were not done."""


def measure(job: JobConfig, recipe: Path) -> tuple[list[float], int]:
    """Seconds of each step, and the most memory that a rank had of its own, in bytes. Trains in a temporary folder. Raises CalibrationFailed
    with the driver's own words."""
    with tempfile.TemporaryDirectory(prefix="zerofleet-calibration-") as folder:
        run, short = create_run(_shortened(job, folder), recipe)
        driver = start_driver(run, short.run.storage)
        try:
            own_bytes = _watch(driver, run)
        finally:
            if driver.wait(0.0) is None:
                driver.end(_END_TIMEOUT_S)
        steps = sorted((line["step"], line["duration_s"]) for line in run.read("metrics") if line["kind"] == "step")
        if len(steps) <= STEPS:
            raise CalibrationFailed(
                f"{len(steps)} of {STEPS + 1} steps were done: {driver.last_error() or driver.log_tail(3)}"
            )
    return [seconds for _, seconds in steps[1:]], own_bytes


def _shortened(job: JobConfig, folder: str) -> JobConfig:
    changes = {
        "run.name": "calibration",
        "run.storage": json.dumps(folder),
        "run.init_from": "null",
        "train.steps": STEPS + 1,
        "train.schedule": "constant",
        "train.warmup_steps": 0,
        "train.decay_steps": 0,
        "train.eval_interval_steps": 0,
        "train.eval_sequences": 1 if job.data.heldout_fraction else 0,
        "checkpoint.interval_steps": 0,
        "checkpoint.snapshot_interval_steps": 0,
        "checkpoint.export": "false",
    }
    return override_job(job, [f"{key}={value}" for key, value in changes.items()])


def _watch(driver: LocalDriver, run: RunFolder) -> int:
    """Until the driver's end: the most bytes that one of its ranks had of its own. A CPU rank gives nothing back, so that looking now and
    then is enough."""
    most, deadline = 0, time.monotonic() + _TIMEOUT_S
    while driver.wait(_LOOK_S) is None:
        if time.monotonic() > deadline:
            raise CalibrationFailed(
                f"{STEPS + 1} steps were not done within {_TIMEOUT_S:.0f} s: calibrate with smaller steps"
            )
        most = max([most, *(own_bytes(pid) for pid in _ranks(run))])
    return most


def _ranks(run: RunFolder) -> Iterator[int]:
    for event in run.events():
        if event.kind == "phase" and event.phase == "init" and event.rank >= 0:
            yield int(event.data["pid"])


def own_bytes(pid: int) -> int:
    """What only this process has of the memory; 0 when it has gone."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
    return 0
