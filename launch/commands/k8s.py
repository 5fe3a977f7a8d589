"""`zerofleet k8s render RECIPE --profile PROFILE`: a job as YAML for Kubernetes, checked; nothing is created."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zerofleet.k8s.lint import lint
from zerofleet.k8s.rayjob import documents
from zerofleet.k8s.to_yaml import to_yaml
from zerofleet.k8s.workload import summary
from zerofleet.launch.checks import check_job, refuse_errors
from zerofleet.launch.config import load_job
from zerofleet.launch.exit_codes import OK
from zerofleet.launch.workload import load_profile, workload_of
from zerofleet.trainer.errors import UserError

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs

MOST_PARAMETERS = 10**18
"""Far above any model, and low enough that every size that follows from it can be computed."""


def add_parser(verbs: Verbs) -> None:
    group = verbs.add_parser("k8s", help="Kubernetes: render a job")
    actions = group.add_subparsers(dest="action", metavar="ACTION", required=True)
    parser = actions.add_parser("render", help="write a job as YAML (KubeRay's RayJob), and say what is wrong with it")
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, such as run.name=first")
    parser.add_argument(
        "--profile", required=True, metavar="PROFILE", help="YAML file of the platform: docs/profile.md"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write (default: standard output)")
    parser.add_argument(
        "--num-parameters",
        type=_num_parameters,
        metavar="N",
        help="parameters of the model, where the recipe does not tell (model.pretrained, or an unknown model_type)",
    )
    parser.set_defaults(handler=render)


def _num_parameters(text: str) -> int:
    """`7.2e9` as well as `7200000000`. argparse's error, which ends with exit code 2, for what no model has."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number <= MOST_PARAMETERS:  # not a number is neither
        raise argparse.ArgumentTypeError(
            f"{text} is not a number from 1 to {MOST_PARAMETERS:g}: give the model's parameters, such as 7.2e9"
        )
    return int(number)


def render(arguments: argparse.Namespace) -> int:
    profile = load_profile(arguments.profile)
    job = load_job(arguments.recipe, arguments.overrides)
    check_job(job)
    workload = workload_of(job, profile, arguments.num_parameters)
    refuse_errors(lint(profile, workload))
    text = to_yaml(documents(profile, workload), ["rendered by zerofleet k8s render", *summary(profile, workload)])
    if arguments.output is None:
        sys.stdout.write(text)
        return OK
    try:
        arguments.output.write_text(text)
    except OSError as error:
        raise UserError(f"--output {arguments.output} cannot be written: {error.strerror}") from error
    return OK
