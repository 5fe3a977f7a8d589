"""`zerofleet submit RECIPE`: checks the job, takes the run's name, starts its driver and follows it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from zerofleet.launch.checks import check_job
from zerofleet.launch.config import load_job
from zerofleet.launch.exit_codes import OK
from zerofleet.trainer.batch import BatchPlan

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser("submit", help="train: from a recipe to a run folder")
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, such as train.steps=20")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved job and the batch arithmetic only")
    parser.add_argument("--detach", action="store_true", help="return when the run has started")
    parser.add_argument("--json", action="store_true", help="one JSON line per event instead of progress")
    parser.add_argument("--backend", choices=["local"], default="local", help="where to run (default: this machine)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    job = load_job(arguments.recipe, arguments.overrides)
    check_job(job)
    if arguments.dry_run:
        plan = BatchPlan.of(job.train.global_batch_size, job.train.micro_batch_size, job.cluster.world_size)
        sys.stdout.write(f"{job.to_yaml()}\n# {plan.describe(job.data.sequence_length)}\n")
        return OK
    raise NotImplementedError
