"""Fault plans: YAML lists of faults (cluster/faults.py) whose steps may be shares of the run's steps, as in `step: 25%`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from zerofleet.cluster.faults import OUTSIDE, Fault, faults_of
from zerofleet.trainer.errors import NotFoundError, UserError

DEFAULT = Path(__file__).parents[1] / "plans" / "default.yaml"

RESUMED = ("sigterm", "kill_driver")
"""Kinds that end the driver: whoever runs the job resumes it."""


def load_plan(path: Path, total_steps: int, num_ranks: int) -> tuple[Fault, ...]:
    """The faults of a plan for a run of so many steps and ranks. Raises UserError, NotFoundError."""
    try:
        entries = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise NotFoundError(f"plan {path} does not exist") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"plan {path} cannot be read: {' '.join(str(error).split())}") from error
    return plan_of(entries, total_steps, num_ranks, str(path))


def plan_of(entries: Any, total_steps: int, num_ranks: int, source: str) -> tuple[Fault, ...]:
    """The faults of a parsed plan; `source` names it in errors. Raises UserError."""
    if isinstance(entries, list):
        entries = [_with_step(entry, total_steps) if isinstance(entry, dict) else entry for entry in entries]
    faults = faults_of(entries, source)
    if not faults:
        raise UserError(f"{source} holds no fault")
    for fault in faults:
        if fault.step > total_steps:
            raise UserError(f"{source}: {fault} never strikes, since the run has {total_steps} steps")
        if fault.rank >= num_ranks:
            ranks = "one rank, 0" if num_ranks == 1 else f"ranks 0 to {num_ranks - 1}"
            raise UserError(
                f"{source}: {fault} never strikes: it waits for rank {fault.rank}, and the run has {ranks}. Give the run more ranks, or another plan by --plan"
            )
        if fault.attempt is None and fault.kind in OUTSIDE:
            raise UserError(f"{source}: {fault} would strike in every attempt: give `attempt: any` or a number")
    return faults


def _with_step(entry: dict[str, Any], total_steps: int) -> dict[str, Any]:
    """`step: 25%` as a step: the next whole one, at least 1."""
    share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(entry.get("step", "")))
    return {**entry, "step": max(1, math.ceil(float(share[1]) / 100 * total_steps))} if share else entry


def ends_badly(faults: tuple[Fault, ...]) -> bool:
    """Whether the run is to stop with a verdict: a gradient that is NaN whatever samples the step is fed is no fault of the data."""
    return any(fault.kind in ("nan", "spike") and fault.attempt is None and fault.position is None for fault in faults)
