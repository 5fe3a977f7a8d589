"""A few steps of a job on this machine: how long they take, and how much memory a rank has at its peak."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zerofleet.launch.backends.local import LocalDriver, start_driver
from zerofleet.launch.commands.submit import create_run
from zerofleet.launch.config import JobConfig, override_job
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.residence import Residence, free_bytes
from zerofleet.trainer.run_folder import RunFolder

STEPS = 3
"""That count; one before them warms up."""
_DISK = "/var/tmp"
"""/tmp may be memory, and the run ends with a checkpoint."""
_LOOK_S = 0.2
_TIMEOUT_S, _STEP_TIMEOUT_S = 600.0, 300.0
_END_TIMEOUT_S = 20.0


class CalibrationFailed(ZerofleetError):
    """The steps were not done."""


@dataclass(frozen=True)
class Measured:
    """What the steps took."""

    steps_s: list[float]
    """Without the first, which warms up."""
    own_bytes: list[int]
    """The most that each rank had of its own, of the host's memory."""
    least_free_bytes: int
    """Of the machine's memory, at the moments when somebody looked."""


def measure(job: JobConfig, recipe: Path, steps: int = STEPS + 1) -> Measured:
    """Trains in a temporary folder. Raises CalibrationFailed with the driver's own words."""
    place = _DISK if "TMPDIR" not in os.environ and os.access(_DISK, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="zerofleet-calibration-", dir=place) as folder:
        run, short = create_run(_shortened(job, folder, steps), recipe)
        driver = start_driver(run, short.run.storage)
        try:
            own_bytes, free_bytes = _watch(driver, run, _TIMEOUT_S + steps * _STEP_TIMEOUT_S)
        finally:
            if driver.wait(0.0) is None:
                driver.end(_END_TIMEOUT_S)
        done = sorted((line["step"], line["duration_s"]) for line in run.read("metrics") if line["kind"] == "step")
        if len(done) < steps:
            raise CalibrationFailed(
                f"{len(done)} of {steps} steps were done: {driver.last_error() or driver.log_tail(3)}"
            )
    return Measured([seconds for _, seconds in done[1:]], own_bytes, free_bytes)


def _shortened(job: JobConfig, folder: str, steps: int) -> JobConfig:
    changes = {
        "run.name": "calibration",
        "run.storage": json.dumps(folder),
        "run.init_from": "null",
        "train.steps": steps,
        "train.schedule": "constant",
        "train.warmup_steps": 0,
        "train.decay_steps": 0,
        "train.eval_interval_steps": 0,
        "train.eval_sequences": 1 if job.data.heldout_fraction else 0,
        "checkpoint.interval_steps": 0,
        "checkpoint.interval_s": 0,
        "checkpoint.snapshot_interval_steps": 0,
        "checkpoint.export": "false",
        "tracking.wandb.enabled": "false",
        "metrics.port": "null",
    }
    return override_job(job, [f"{key}={value}" for key, value in changes.items()])


def _watch(driver: LocalDriver, run: RunFolder, timeout_s: float) -> tuple[list[int], int]:
    """Until the driver's end: the most bytes that each of its ranks had of its own, and the least that the machine had free. The kernel keeps a
    process's mark, so that looking now and then is enough."""
    most, least, deadline = Counter[int](), free_bytes(), time.monotonic() + timeout_s
    while driver.wait(_LOOK_S) is None:
        if time.monotonic() > deadline:
            raise CalibrationFailed(f"the steps were not done within {timeout_s:.0f} s: calibrate with smaller steps")
        least = min(least, free_bytes())
        for pid in _ranks(run):
            with contextlib.suppress(OSError, ValueError):  # it has gone
                most[pid] = max(most[pid], Residence.of(pid).highest_own)
    return list(most.values()), least


def _ranks(run: RunFolder) -> Iterator[int]:
    for event in run.events():
        if event.kind == "phase" and event.phase == "init" and event.rank >= 0:
            yield int(event.data["pid"])
