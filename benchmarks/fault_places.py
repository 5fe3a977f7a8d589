"""Where a cell of the fault matrix runs: on this host, over several, or with its storage in S3. The losses are the same everywhere."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Protocol

from zerofleet.benchmarks.hosts.harness import Hosts, why_not
from zerofleet.benchmarks.s3.proxy import NONE, REFUSE, BadProxy
from zerofleet.benchmarks.s3.server import BUCKET, S3Server, environment
from zerofleet.cluster.faults import Fault
from zerofleet.launch.chaos.trial import Trial, run_trial
from zerofleet.launch.config import JobConfig, override_job

_HOSTS = 3
"""Two that hold a rank each, and a spare."""
_PATIENCE_S = 60.0
"""Beyond a trial's own limit, for the process that it runs in."""
_QUICK_TO_NOTICE = '{"config_kwargs": {"connect_timeout": 0.5, "read_timeout": 0.5}}'
"""What a client of S3 bridges by itself, three tries with pauses, is over long before an outage of 30 s."""


class Place(Protocol):
    """Somewhere to run."""

    def run(self, job: JobConfig, recipe: Path, plan: tuple[Fault, ...], timeout_s: float) -> Trial:
        """One run under the plan."""

    def close(self) -> None:
        """Ends what the place consists of."""


class ThisHost:
    """Both ranks on this host, under a Ray of the run's own, storage on its disk."""

    def run(self, job: JobConfig, recipe: Path, plan: tuple[Fault, ...], timeout_s: float) -> Trial:
        return run_trial(job, recipe, plan, timeout_s)

    def close(self) -> None:
        """Every run ends its Ray itself."""


class OverHosts:
    """A rank on each of two hosts that share a disk, and a spare host; the driver is on the first, with Ray's head."""

    def __init__(self, folder: Path) -> None:
        """All hosts see `folder`. Needs root."""
        self._folder = folder
        self.hosts = Hosts(_HOSTS, shared=[folder])

    def run(self, job: JobConfig, recipe: Path, plan: tuple[Fault, ...], timeout_s: float) -> Trial:
        """Hosts that the plan has struck are replaced by new ones afterwards."""
        cluster = {"address": self.hosts.ray_address, "nodes": 2, "ranks_per_node": 1, "cpus_per_rank": 2}
        job = override_job(job, [f"cluster.{name}={value}" for name, value in cluster.items()])
        told, answer = self._folder / "trial", self._folder / "trial-answer"
        told.write_bytes(pickle.dumps((job, recipe, plan, timeout_s)))
        command = [sys.executable, "-P", "-m", "zerofleet.benchmarks.hosts.trial", str(told), str(answer)]
        done = self.hosts[0].run(command, timeout_s + _PATIENCE_S)
        if done.returncode:
            raise RuntimeError(f"the trial on {self.hosts[0].name} ended with {done.returncode}: {done.stderr[-2000:]}")
        trial: Trial = pickle.loads(answer.read_bytes())
        for name in {node_of(trial, strike.fault.rank, strike.arrival.attempt) for strike in trial.strikes}:
            self._replace(name)
        return trial

    def _replace(self, name: str) -> None:
        index = next(index for index in range(len(self.hosts)) if self.hosts[index].name == name)
        if index:  # with the first the head would go
            self.hosts[index].close()
            self.hosts.add()

    def close(self) -> None:
        self.hosts.close()


class OverS3:
    """As ThisHost, with the run folder in S3 behind a proxy, which refuses everything in an outage."""

    def __init__(self) -> None:
        self._server = S3Server().__enter__()
        self._proxy = BadProxy(self._server.port).__enter__()
        settings = {**environment(self._proxy.port), "FSSPEC_S3": _QUICK_TO_NOTICE}
        self._before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)

    def run(self, job: JobConfig, recipe: Path, plan: tuple[Fault, ...], timeout_s: float) -> Trial:
        return run_trial(override_job(job, [f"run.storage=s3://{BUCKET}"]), recipe, plan, timeout_s, outage=self)

    def begin(self) -> None:
        self._proxy.fault = REFUSE

    def end(self) -> None:
        self._proxy.fault = NONE

    def close(self) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        self._proxy.__exit__()
        self._server.__exit__()


def node_of(trial: Trial, rank: int, attempt: int) -> str:
    """The name of the host that a rank ran on in an attempt."""
    return next(
        str(event.data["node"])
        for event in trial.record.events
        if (event.kind, event.phase, event.rank, event.attempt) == ("phase", "init", rank, attempt)
    )


def why_not_over(place: str) -> str:
    """Why this machine does not have the place; empty when it has."""
    return why_not() if place == "hosts" else ""
