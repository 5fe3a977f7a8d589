"""What this machine made of a plan, kept for later plans of the same machine."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Sequence
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
    """A rank's own memory at its peak, measured over planned: of the rank that has most."""
    least_memory_ratio: float
    """Of the one that has least."""
    parameters: int
    measured_at: str


def calibration_of(
    steps_s: list[float], own: Sequence[int], flops_per_step: float, planned: int, parameters: int
) -> Calibration:
    """From what was measured (`own`: bytes of each rank) and what was planned for one rank. Pure."""
    rates = [flops_per_step / seconds for seconds in steps_s]
    error = statistics.stdev(rates) / math.sqrt(len(rates)) / statistics.mean(rates)
    most, least = max(own) / planned, min(own) / planned
    return Calibration(statistics.mean(rates), error, most, least, parameters, time.strftime("%Y-%m-%d"))


# -- kept for later -------------------------------------------------------------------------------------------------------
def _file() -> Path:
    return Path(os.environ.get("ZEROFLEET_CACHE") or "~/.cache/zerofleet").expanduser() / "calibration.json"


PLAN = 4
"""Raised when the plan's formulas of memory change (a test says so): a correction belongs to one of them."""


def key_of(job: JobConfig) -> str:
    """What a calibration holds for: this processor, as many ranks, the same precision, and the plan that it was a correction of."""
    machine = fingerprint()
    device = "GPU" if job.cluster.gpus_per_rank else "CPU"
    return f"{machine['processor']}, {machine['cores']} cores, {device}, {job.cluster.world_size} ranks, {job.train.precision}, plan {PLAN}"


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
