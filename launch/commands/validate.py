"""`zerofleet validate RECIPE`: everything that can be checked without torch, ray or the data."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from zerofleet.launch.checks import check_job
from zerofleet.launch.config import load_job
from zerofleet.launch.exit_codes import OK
from zerofleet.launch.silos.arithmetic import describe_job

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
    arithmetic = "".join(f"{line}\n" for line in describe_job(job))
    sys.stdout.write(f"{arithmetic}{arguments.recipe} is valid\n")
    return OK
