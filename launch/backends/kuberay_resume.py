"""`resume` of a run on Kubernetes: another RayJob of the same name, that goes on with the run folder."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import yaml

from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.names import JOB_FILE, OVERRIDES_FILE, config_map_name
from zerofleet.k8s.observer import look
from zerofleet.k8s.paths import CONFIG_MAP
from zerofleet.k8s.permissions import check_permissions
from zerofleet.k8s.run_objects import delete_run
from zerofleet.launch.backends.kuberay import checked, needed_profile, start
from zerofleet.launch.backends.kuberay_watch import Place
from zerofleet.launch.checks import check_job
from zerofleet.launch.config import JobConfig, frozen_changes, override_job, parse_job, resolve_overrides
from zerofleet.launch.drivers import driver_records
from zerofleet.trainer.errors import NotFoundError, UserError
from zerofleet.trainer.run_folder import RunFolder


@dataclass(frozen=True)
class Stored:
    """A run's job.yaml as it began, and the overrides of all its resumes."""

    job_yaml: str
    overrides: list[str]

    def job(self, source: str) -> JobConfig:
        return override_job(parse_job(self.job_yaml, source), self.overrides)


def resume(arguments: argparse.Namespace) -> int:
    """Raises UserError when the run still goes on, --namespace is not the profile's, or the overrides change what is frozen."""
    profile = needed_profile(arguments)
    if arguments.namespace not in (None, profile.namespace):
        raise UserError(
            f"--namespace {arguments.namespace} is not the namespace of the profile, {profile.namespace!r}, where a resume makes the run's objects: "
            "leave --namespace out, or give the profile of that namespace"
        )
    api = Api(arguments.context)
    name = arguments.run.rstrip("/").rpartition("/")[2]
    place = Place(api, profile.namespace, name, arguments.context, arguments.profile)
    stored = _found(place, arguments.run)
    observed = look(api, place.namespace, name)
    status = observed.status
    if status.deployment and not status.is_over(0.0) and observed.deactivation is None:
        raise UserError(
            f"run {name} is {status.words}: see {place.command('status')}, or {place.command('stop')} before resuming"
        )
    overrides = [*stored.overrides, *resolve_overrides(arguments.overrides)]
    before = stored.job(name)
    job = override_job(before, overrides)
    if changes := frozen_changes(before, job):
        raise UserError(
            f"run {name} cannot be resumed with this: {'; '.join(changes)}. The sample order, the ledger and the weights of the run depend on it: "
            "submit a new run instead (run.init_from starts from this one's weights)"
        )
    check_job(job)
    workload = checked(job, profile, arguments.num_parameters)
    check_permissions(api, profile)
    delete_run(api, place.namespace, name)
    return start(place, job, profile, replace(workload, job_yaml=stored.job_yaml), arguments, overrides)


def stored_job(place: Place) -> JobConfig:
    """Of a run that the cluster knows, with all overrides. Raises NotFoundError."""
    return _in_cluster(place).job(place.name)


def _found(place: Place, run: str) -> Stored:
    """From the cluster, or from the run folder where this machine can read it."""
    try:
        return _in_cluster(place)
    except NotFoundError as error:
        try:
            folder = RunFolder.open(run)
        except NotFoundError:
            raise NotFoundError(
                f"{error}. A run whose objects are gone goes on when its recipe is submitted again with run.name={place.name}; or give the URL of its "
                "folder, where this machine can read it"
            ) from error
        overrides = [override for record in driver_records(folder) for override in record.overrides]
        return Stored(folder.job_yaml(), overrides)


def _in_cluster(place: Place) -> Stored:
    """Raises NotFoundError."""
    name = config_map_name(place.name)
    try:
        data = place.api.get(CONFIG_MAP.path(place.namespace, name)).get("data") or {}
    except ApiError as error:
        if error.status != 404:
            raise
        raise NotFoundError(f"no ConfigMap {name!r} in namespace {place.namespace}") from error
    if JOB_FILE not in data:
        raise NotFoundError(f"ConfigMap {name!r} in namespace {place.namespace} has no {JOB_FILE}")
    return Stored(data[JOB_FILE], list(yaml.safe_load(data.get(OVERRIDES_FILE, "[]"))))
