"""`zerofleet plan RECIPE [--profile PROFILE]`: what a job takes, whether it fits, and with which settings it would be quickest."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zerofleet.launch.checks import check_job, check_machine
from zerofleet.launch.config import JobConfig, load_job
from zerofleet.launch.exit_codes import OK, USER_MISTAKE
from zerofleet.launch.planning.calibration import calibration_of, store, stored
from zerofleet.launch.planning.job_plan import JobPlan, plan_job
from zerofleet.launch.planning.measured_steps import STEPS, measure
from zerofleet.launch.planning.model_shape import model_of
from zerofleet.launch.planning.node_profile import calibrated, node_for
from zerofleet.launch.planning.text import refusal, size, text_of
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.sizing.pace import slower_by

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("plan", help="memory, traffic, time and cost of a job before it is started")
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, such as cluster.nodes=4")
    parser.add_argument(
        "--profile", metavar="FILE", help="YAML of a node, or of a Kubernetes cluster (default: this machine)"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="train a few steps here first; later plans of this machine are corrected by what they took",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, sizes in bytes")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    job = load_job(arguments.recipe, arguments.overrides)
    check_job(job)
    plan = make_plan(job, Path(arguments.recipe), arguments.profile, arguments.calibrate)
    sys.stdout.write(json.dumps(plan.to_dict()) + "\n" if arguments.json else text_of(plan))
    if plan.fits:
        return OK
    sys.stderr.write(f"error: {refusal(plan)}\n")
    return USER_MISTAKE


def make_plan(job: JobConfig, recipe: Path, profile: str | None, calibrates: bool) -> JobPlan:
    """UserError for what contradicts itself, or cannot be measured because it does not fit."""
    model, node = model_of(job), node_for(job, profile)
    if profile is not None or job.cluster.address:
        if calibrates:
            raise UserError("--calibrate measures this machine: leave out --profile and cluster.address")
        return plan_job(job, model, node)
    if calibrates:
        calibrate(job, recipe, plan_job(job, model, node))
    return plan_job(job, model, calibrated(node, stored(job)))


def calibrate(job: JobConfig, recipe: Path, plan: JobPlan) -> None:
    """Measures, and keeps what was found."""
    if not plan.fits:
        raise UserError(refusal(plan))
    check_machine(job)
    sys.stderr.write(f"training {STEPS + 1} steps\n")
    measured = measure(job, recipe)
    batch, length = plan.footprint.setup.batch, plan.footprint.setup.sequence_length
    tokens = batch.gradient_accumulation_steps * batch.micro_batch_size * length
    flops = tokens * plan.model.sizes.flops_per_token(length) * slower_by(plan.footprint.setup)
    planned = plan.footprint.bytes_per_rank
    # What was allocated on a GPU is looked at too seldom for so few steps: there the rate alone is corrected.
    own = [planned] if plan.footprint.setup.on_gpu else measured.own_bytes
    found = calibration_of(measured.steps_s, own, flops, planned, plan.model.sizes.parameters)
    file = store(job, found)
    took = ", ".join(f"{seconds:.3g}" for seconds in measured.steps_s)
    memory = (
        f"a rank had {size(max(own))} of its own, {found.memory_ratio:.3f} x the plan's {size(planned)} (the one with least "
        f"{found.least_memory_ratio:.3f} x)"
    )
    told = "memory is not corrected on GPUs" if plan.footprint.setup.on_gpu else memory
    sys.stderr.write(f"steps of {took} s; {told}; kept in {file}\n")
