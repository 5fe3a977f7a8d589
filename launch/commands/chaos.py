"""`zerofleet chaos RECIPE [--plan P]`: a run under a fault plan, compared with the same run unbroken."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zerofleet.launch.checks import check_job, check_machine
from zerofleet.launch.commands.submit import probe_storage
from zerofleet.launch.config import JobConfig, load_job
from zerofleet.launch.exit_codes import OK, RUN_FAILED
from zerofleet.trainer.data import quarantine

if TYPE_CHECKING:
    from zerofleet.launch.chaos.trial import Trial
    from zerofleet.launch.commands.types import Verbs

REFERENCE = "-reference"
"""What the unbroken run's name has behind the name of the run."""
PATIENCE = 10.0
"""The run under faults may take so many times as long as the unbroken one, and FAULT_S more for every fault."""
FAULT_S = 120.0

_ROW = "{:<16} {:<14} {:>12} {:>12} {:>9}\n"


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("chaos", help="break a run on purpose, and prove that nothing was lost")
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, such as train.steps=20")
    parser.add_argument(
        "--plan", type=Path, help="YAML list of faults (docs/faults.md); without it a plan of every kind"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that a run that is driven is ended
    job = load_job(arguments.recipe, arguments.overrides)
    check_job(job)
    check_machine(job)
    probe_storage(job.run.storage)
    # Not before: they need numpy, which the light verbs do without.
    from zerofleet.launch.chaos.plan import DEFAULT, load_plan
    from zerofleet.launch.chaos.trial import named, reference_for, run_trial

    faults = load_plan(arguments.plan or DEFAULT, job.train.steps, job.cluster.world_size)
    recipe = Path(arguments.recipe)
    name = job.run.name or _name(recipe)
    job, unbroken = named(job, name), named(job, f"{name}{REFERENCE}")
    _say(f"run {unbroken.run.name}: unbroken, {job.train.steps} steps")
    reference = run_trial(unbroken, recipe)
    if reference.record.final_state != "FINISHED":
        sys.stderr.write(
            f"error: the unbroken run ended in state {reference.record.final_state}: nothing to compare with\n"
        )
        return RUN_FAILED
    _say(f"run {name}: {len(faults)} faults")
    timeout_s = PATIENCE * reference.wall_s + FAULT_S * len(faults)
    trial = run_trial(job, recipe, faults, timeout_s)
    problems = trial.problems(reference_for(trial, reference, job, recipe))
    facts = {**trial.to_dict(), "unbroken_s": reference.wall_s, "problems": problems}
    sys.stdout.write(json.dumps(facts) + "\n" if arguments.json else table(trial, reference.wall_s, problems, job))
    return RUN_FAILED if problems else OK


def table(trial: Trial, unbroken_s: float, problems: list[str], job: JobConfig) -> str:
    """What a person reads: one line per fault, then the outcome."""
    lines = _ROW.format("FAULT", "WHERE", "DETECTED", "RESTORED", "REPEATED")
    for strike, cost in trial.costs:
        where = f"{strike.fault.point} {strike.arrival.step}"
        seconds = ["-" if s is None else f"after {s:.1f} s" for s in (cost.detected_s, cost.restored_s)]
        lines += _ROW.format(strike.fault.kind, where, *seconds, f"{cost.repeated_steps} steps")
    lines += (
        f"\n{trial.run.name}: {trial.record.final_state} in {trial.wall_s:.1f} s with {len(trial.record.attempts)} attempts and "
        f"{trial.num_resumes} resumes; unbroken {unbroken_s:.1f} s\n"
    )
    if problems:
        return lines + "".join(f"NOT PROVED: {problem}\n" for problem in problems)
    return lines + _proved(trial, job)


def _proved(trial: Trial, job: JobConfig) -> str:
    steps = max(trial.record.losses(), default=0)
    outcome = "" if trial.record.final_state == "FINISHED" else f"stopped as it has to: {trial.record.last_verdict}\n"
    ranges = trial.record.quarantine
    left_out = f"left out in the end: {quarantine.named(ranges)}\n" if ranges else ""
    return (
        f"{outcome}{left_out}losses of {steps} steps bitwise those of the unbroken run; every one of "
        f"{steps * job.train.global_batch_size} positions fed exactly once\n"
    )


def _name(recipe: Path) -> str:
    stem = re.sub(r"[^a-z0-9._-]+", "-", recipe.stem.lower()).strip("._-")[:14] or "run"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
