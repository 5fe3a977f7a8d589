"""The plan as `submit` uses it: one line, a warning when it is close, a refusal when it is certain that the job cannot run here."""

from __future__ import annotations

import sys

from zerofleet.launch.config import JobConfig
from zerofleet.launch.planning.calibration import stored
from zerofleet.launch.planning.job_plan import JobPlan, plan_job
from zerofleet.launch.planning.model_shape import planned_by_closed_form
from zerofleet.launch.planning.node_profile import calibrated, this_machine
from zerofleet.launch.planning.text import one_line, refusal
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.sizing.node import Node

CERTAIN = 1.1
"""A job is refused when its training states alone need so many times the memory that the machine has: the plan's own error is smaller
(benchmarks/results/), and what else it adds up is estimated."""


def plan_first(job: JobConfig) -> str:
    """One line, empty where nothing is known without torch, or of nodes that are not this one. Warnings go to stderr. Raises UserError when it
    is certain that the job does not fit."""
    return "" if job.cluster.address else plan_on(job, calibrated(this_machine(job), stored(job)))


def plan_on(job: JobConfig, node: Node) -> str:
    """The same of nodes of that kind."""
    model = planned_by_closed_form(job)
    if model is None or (job.cluster.gpus_per_rank and not node.gpu_memory_bytes):
        return ""
    plan = plan_job(job, model, node)
    if plan.fits:
        return one_line(plan)
    if certainly_too_large(plan):
        raise UserError(refusal(plan))
    sys.stderr.write(f"warning: {refusal(plan)}\n")
    return ""


def certainly_too_large(plan: JobPlan) -> bool:
    """Whether what the ranks must hold between steps is more than the machine has, by a margin that no error of the plan explains."""
    setup = plan.footprint.setup
    states = plan.footprint.memory.states_bytes * setup.ranks_per_node
    return not setup.on_gpu and states > CERTAIN * plan.node.memory_bytes
