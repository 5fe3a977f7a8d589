"""`zerofleet k8s render RECIPE --profile PROFILE` and `k8s bootstrap --profile PROFILE`: a job, or what must exist before the first, as YAML for
Kubernetes, checked; nothing is created."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zerofleet.k8s.bootstrap.documents import bootstrap as platform_documents
from zerofleet.k8s.bootstrap.documents import summary as platform_summary
from zerofleet.k8s.bootstrap.rules import lint_platform
from zerofleet.k8s.kustomize import base
from zerofleet.k8s.lint import lint
from zerofleet.k8s.rayjob import documents
from zerofleet.k8s.to_yaml import to_yaml
from zerofleet.k8s.workload import summary
from zerofleet.launch.backends.options import add_profile
from zerofleet.launch.checks import check_job, refuse_errors
from zerofleet.launch.config import load_job
from zerofleet.launch.exit_codes import OK
from zerofleet.launch.workload import load_profile, workload_of
from zerofleet.trainer.errors import UserError

if TYPE_CHECKING:
    from zerofleet.launch.commands.types import Verbs


def add_parser(verbs: Verbs) -> None:
    group = verbs.add_parser("k8s", help="Kubernetes: render a job, or what must exist before the first")
    actions = group.add_subparsers(dest="action", metavar="ACTION", required=True)
    parser = actions.add_parser("render", help="write a job as YAML (KubeRay's RayJob), and say what is wrong with it")
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, such as run.name=first")
    place = parser.add_mutually_exclusive_group()
    _add_output(place)
    place.add_argument(
        "--kustomize", type=Path, metavar="DIR", help="write a kustomize base there instead: a file for each document"
    )
    add_profile(parser, required=True)
    parser.set_defaults(handler=render)
    parser = actions.add_parser(
        "bootstrap",
        help="write what must exist in the cluster before the first run: namespace, rights, network, queues, storage",
    )
    _add_output(parser)
    parser.add_argument(
        "--profile", required=True, metavar="PROFILE", help="YAML file of the platform: docs/profile.md"
    )
    parser.set_defaults(handler=bootstrap)


def _add_output(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write (default: standard output)")


def render(arguments: argparse.Namespace) -> int:
    profile = load_profile(arguments.profile)
    job = load_job(arguments.recipe, arguments.overrides)
    check_job(job)
    workload = workload_of(job, profile, arguments.num_parameters)
    refuse_errors(lint(profile, workload))
    made, comment = documents(profile, workload), ["rendered by zerofleet k8s render", *summary(profile, workload)]
    if arguments.kustomize is None:
        return _write(to_yaml(made, comment), arguments.output)
    for name, text in base(made, comment).items():
        _write(text, arguments.kustomize / name, "--kustomize")
    return OK


def bootstrap(arguments: argparse.Namespace) -> int:
    profile = load_profile(arguments.profile)
    refuse_errors(lint_platform(profile))
    comment = ["rendered by zerofleet k8s bootstrap", *platform_summary(profile)]
    return _write(to_yaml(platform_documents(profile), comment), arguments.output)


def _write(text: str, output: Path | None, option: str = "--output") -> int:
    if output is None:
        sys.stdout.write(text)
        return OK
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
    except OSError as error:
        raise UserError(f"{option} {output} cannot be written: {error.strerror}") from error
    return OK
