"""`--backend ray`: the driver runs as a job of a Ray cluster that is there already, and joins the cluster that it runs on."""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence

from zerofleet.cluster import probe
from zerofleet.cluster.placement import Ask
from zerofleet.launch.backends.cluster_report import ClusterFound, Needs, check_ray, described_code, judge, planned_for
from zerofleet.launch.backends.package import code_package, probe_package
from zerofleet.launch.backends.ray_driver import RayDriver
from zerofleet.launch.backends.ray_jobs import Job, RayJobs
from zerofleet.launch.config import JobConfig
from zerofleet.launch.drivers import JobRecord, effective_job, next_number, write_job_record
from zerofleet.launch.planning.before_submit import plan_on
from zerofleet.trainer.errors import StorageError, UserError, ZerofleetError
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.storage import Storage

DRIVER_MODULE = "zerofleet.launch.job_driver"
_LOOK_TIMEOUT_S = 150.0
"""How long a look at the cluster may take: a job's start (Ray gives it as long as it takes to unpack what is sent) and a worker's
on every node."""
_LOOK_POLL_S = 0.3
_STOP_GRACE_S = 60.0
"""Seconds for the driver's own end, after the checkpoint that a stop waits for."""


class RayCluster:
    """A cluster at the address of its job API."""

    def __init__(self, address: str) -> None:
        self.jobs = RayJobs(address)
        self.needs = Needs.ours(probe.code_version(), probe.code_digest())
        self._sends_code = False

    def check(self, job: JobConfig, is_new: bool) -> str:
        """Versions, packages and storage, on every node; of a new run the plan, too. Raises UserError."""
        check_job_for_cluster(job)
        check_ray(self.jobs.ray_version(), self.needs, self.jobs.address)
        found = self.look(job.run.storage)
        self._sends_code = judge(found, self.needs, job.run.storage)
        node = planned_for(found, Ask.of(job.cluster)) if is_new else None
        planned = plan_on(job, node) if node is not None else ""
        return "\n".join(filter(None, [described_code(found, self.needs, self._sends_code), planned]))

    def look(self, storage: str) -> ClusterFound:
        """What the cluster's nodes are, and whether they see `storage` (empty: that is not asked). Takes some seconds: a job of its own
        asks them. Raises UserError, ZerofleetError."""
        name = f"zerofleet-probe-{secrets.token_hex(6)}"
        with _marker(storage) as marker:
            environment = {"py_modules": [self.jobs.upload(probe_package(marker))]}
            self.jobs.submit(name, f"exec python -m {probe.MODULE}", environment)
            ended = self._wait_for(name)
        log = self.jobs.log(name)
        self.jobs.forget(name)
        answers = [line for line in log.splitlines() if line.startswith(probe.ANSWER)]
        if not answers:
            tail = "\n".join(log.splitlines()[-5:])
            raise ZerofleetError(
                f"the cluster at {self.jobs.address} could not be looked at: {_first(ended.message)}\n{tail}"
            )
        return ClusterFound.from_answer(json.loads(answers[-1].removeprefix(probe.ANSWER)))

    def _wait_for(self, name: str) -> Job:
        deadline = time.monotonic() + _LOOK_TIMEOUT_S
        while time.monotonic() < deadline:
            if (job := self.jobs.job(name)) is not None and job.is_over:
                return job
            time.sleep(_LOOK_POLL_S)
        self.jobs.stop(name)
        raise UserError(
            f"a look at the cluster at {self.jobs.address} has not ended in {_LOOK_TIMEOUT_S:.0f} s: its head is overloaded or cannot "
            f"start workers. See job {name} in its dashboard"
        )

    def start(self, run: RunFolder, storage_url: str, overrides: Sequence[str], after: int) -> RayDriver:
        """Hands the run's next driver to the cluster. Raises UserError when another is handed over at this moment, ZerofleetError."""
        number = next_number(run)
        record = JobRecord(
            number, "ray", self.jobs.address, f"{run.name}-{number:04d}-{secrets.token_hex(4)}", time.time()
        )
        write_job_record(run, record)
        words = [storage_url, run.name, "--number", str(number), "--after", str(after)]
        for override in overrides:
            words += ["--override", override]
        entrypoint = f"exec python -P -u -m {DRIVER_MODULE} {shlex.join(words)}"
        try:
            environment = self._environment(run)
            self.jobs.submit(record.job, entrypoint, environment)
        except ZerofleetError:
            run.storage.remove(record.path)
            raise
        return RayDriver(self.jobs, record, run)

    def _environment(self, run: RunFolder) -> dict[str, object]:
        """`ray job stop` is a stop with a checkpoint: Ray's 3 s would not do for that."""
        wait_s = math.ceil(effective_job(run).cluster.stop_timeout_s + _STOP_GRACE_S)
        environment: dict[str, object] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(wait_s)}}
        if self._sends_code:
            environment["py_modules"] = [self.jobs.upload(code_package())]
        return environment


def check_job_for_cluster(job: JobConfig) -> None:
    """Raises UserError for what a driver that is a job cannot do."""
    if job.cluster.address:
        raise UserError(
            f"cluster.address={job.cluster.address!r} is for a driver on this machine; with --backend ray the driver runs on the cluster "
            "that --address names, and joins that one: remove cluster.address, or --backend ray"
        )
    if job.silos is not None:
        raise UserError(
            "silos have a driver each and --backend ray runs one: submit without it from a host of the cluster, which cluster.address names"
        )


@contextlib.contextmanager
def _marker(storage: str) -> Iterator[str]:
    """A file in the storage, as long as it is looked for: its path or URL. Raises UserError where it cannot be written."""
    if not storage:
        yield ""
        return
    name, place = f".zerofleet-probe-{secrets.token_hex(6)}", Storage(storage)
    try:
        place.create(name, b"seen")
    except StorageError as error:
        raise UserError(f"run.storage={storage!r} cannot be used: {error}") from error
    try:
        yield place.path(name) if place.is_local else f"{place.url}/{name}"
    finally:
        place.remove(name)


def _first(message: str) -> str:
    return next(iter(message.strip().splitlines()), "its job ended without an answer")
