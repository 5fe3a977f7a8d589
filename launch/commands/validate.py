"""`zerofleet validate RECIPE`: everything that can be checked without torch, ray or the data."""

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
    parser = verbs.add_parser("validate", help="check a recipe: static and light")
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, such as train.steps=20")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    job = load_job(arguments.recipe, arguments.overrides)
    check_job(job)
    plan = BatchPlan.of(job.train.global_batch_size, job.train.micro_batch_size, job.cluster.world_size)
    sys.stdout.write(f"{plan.describe(job.data.sequence_length)}\n{arguments.recipe} is valid\n")
    return OK
