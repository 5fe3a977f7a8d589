"""What this machine made of a plan, kept for later plans of the same machine."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from zerofleet.launch.config import JobConfig
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.errors import UserError


@dataclass(frozen=True)
class Calibration:
    """What was measured, over what the plan reckons."""

    flops_per_rank: float
    """Per second: a step's FLOPs, recomputed ones too, over its whole time, so that network and optimizer are in it."""
    flops_error: float
    """Standard error of their mean, as a share."""
    memory_ratio: float
    """A rank's own memory at its peak, measured over planned."""
    parameters: int
    measured_at: str


def calibration_of(steps_s: list[float], own: int, flops_per_step: float, planned: int, parameters: int) -> Calibration:
    """From what was measured and what was planned, both of one rank. Pure."""
    rates = [flops_per_step / seconds for seconds in steps_s]
    error = statistics.stdev(rates) / math.sqrt(len(rates)) / statistics.mean(rates)
    return Calibration(statistics.mean(rates), error, own / planned, parameters, time.strftime("%Y-%m-%d"))


# -- kept for later -------------------------------------------------------------------------------------------------------
def _file() -> Path:
    return Path(os.environ.get("ZEROFLEET_CACHE") or "~/.cache/zerofleet").expanduser() / "calibration.json"


_PLAN = 3
"""Raised when the plan's formulas change: a correction belongs to one of them."""


def key_of(job: JobConfig) -> str:
    """What a calibration holds for: this processor, as many ranks, the same precision, and the plan that it was a correction of."""
    machine = fingerprint()
    device = "GPU" if job.cluster.gpus_per_rank else "CPU"
    return f"{machine['processor']}, {machine['cores']} cores, {device}, {job.cluster.world_size} ranks, {job.train.precision}, plan {_PLAN}"


def stored(job: JobConfig) -> Calibration | None:
    """The newest calibration that holds for a job on this machine. A file that cannot be read is as good as none: it is measured again."""
    try:
        found = json.loads(_file().read_text()).get(key_of(job))
        return Calibration(**found) if found else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def store(job: JobConfig, calibration: Calibration) -> Path:
    """Keeps it in the cache folder, in the place of an older one. UserError when that cannot be written."""
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = json.loads(file.read_text())
        except (OSError, ValueError):
            known = {}
        written = file.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps({**known, key_of(job): asdict(calibration)}, indent=1) + "\n")
        written.replace(file)
    except OSError as error:
        raise UserError(
            f"the calibration cannot be kept in {file.parent} ({error.strerror}): set ZEROFLEET_CACHE"
        ) from error
    return file
