"""`submit --backend kuberay`: a recipe and a platform profile become a RayJob, checked before anything is created."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from zerofleet.k8s.api import Api
from zerofleet.k8s.lint import lint
from zerofleet.k8s.names import MAX_NAME, OVERRIDES_FILE
from zerofleet.k8s.permissions import check_permissions
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.rayjob import documents
from zerofleet.k8s.run_objects import create_run
from zerofleet.k8s.workload import Workload, summary
from zerofleet.launch.backends.kuberay_watch import KubeWatch, Place, say_detached
from zerofleet.launch.checks import refuse_errors
from zerofleet.launch.config import JobConfig
from zerofleet.launch.exit_codes import OK
from zerofleet.launch.planning.before_submit import plan_on
from zerofleet.launch.planning.node_profile import node_of_cluster
from zerofleet.launch.progress import Progress
from zerofleet.launch.workload import load_profile, workload_of
from zerofleet.trainer.errors import UserError


def submit(arguments: argparse.Namespace, job: JobConfig) -> int:
    """Creates the run's objects and follows it."""
    profile = needed_profile(arguments)
    if job.run.name is None:
        named = job.run.model_copy(update={"name": timed_name(Path(arguments.recipe))})
        job = job.model_copy(update={"run": named})
    workload = checked(job, profile, arguments.num_parameters)
    planned = plan_on(job, node_of_cluster(profile, Path(arguments.profile).stem, job.train.precision))
    place = Place(Api(arguments.context), profile.namespace, workload.name or "", arguments.context, arguments.profile)
    check_permissions(place.api, profile)
    if planned and not arguments.json:
        sys.stdout.write(f"{planned}\n")
    return start(place, job, profile, workload, arguments)


def checked(job: JobConfig, profile: Profile, num_parameters: int | None) -> Workload:
    """Raises UserError with everything that lint finds."""
    workload = workload_of(job, profile, num_parameters)
    refuse_errors(lint(profile, workload))
    return workload


def start(
    place: Place,
    job: JobConfig,
    profile: Profile,
    workload: Workload,
    arguments: argparse.Namespace,
    overrides: Sequence[str] = (),
) -> int:
    """Creates and follows. `overrides`: of a resume, which job.yaml does not have."""
    made = documents(profile, workload)
    if overrides:
        made[0]["data"][OVERRIDES_FILE] = yaml.safe_dump(list(overrides))
    create_run(place.api, made, secrets.token_hex(8))
    _say_created(place, profile, workload, arguments.json)
    if arguments.detach:
        say_detached(place)
        return OK
    return KubeWatch(place, Progress(job.train.steps), workload.storage, arguments.json).follow()


def needed_profile(arguments: argparse.Namespace) -> Profile:
    if arguments.profile is None:
        raise UserError(
            "--backend kuberay needs --profile: the YAML file that describes the platform (docs/profile.md)"
        )
    return load_profile(arguments.profile)


def timed_name(recipe: Path) -> str:
    """As the local backend names a run, within KubeRay's rules."""
    stem = re.sub(r"[^a-z0-9]+", "-", recipe.stem.lower()).strip("-")
    stem = stem if stem[:1].isalpha() else f"run-{stem}".strip("-")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return f"{stem[: MAX_NAME - len(stamp) - 1].rstrip('-')}-{stamp}"


def _say_created(place: Place, profile: Profile, workload: Workload, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "run": place.name,
        "namespace": place.namespace,
        "folder": f"{workload.storage}/{place.name}",
    }
    if as_json:
        sys.stdout.write(json.dumps({"kind": "run", **facts}) + "\n")
    else:
        sys.stdout.write(
            f"run {place.name}: RayJob {place.name} in namespace {place.namespace}, folder {facts['folder']} in its pods\n"
        )
        sys.stdout.write("".join(f"  {line}\n" for line in summary(profile, workload)))
    sys.stdout.flush()
