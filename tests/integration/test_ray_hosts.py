"""`--backend ray` from a machine outside a cluster of several hosts: both train, one is killed and replaced, and the run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.cli import Cli, assert_audited, losses, wait_for_step
from tests.support.ranks import Plan, run_attempt
from zerofleet.benchmarks.hosts.harness import Hosts, why_not
from zerofleet.launch.config import load_job
from zerofleet.launch.drivers import driver_records, job_records

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

JOB = ["train.steps=5000", "checkpoint.interval_steps=20"]
"""Steps enough for any machine: the run is stopped."""
CLUSTER = ["cluster.nodes=2", "cluster.ranks_per_node=1", "cluster.cpus_per_rank=1"]


class Laptop:
    """The command line outside the hosts, in their network."""

    def __init__(self, cli: Cli, hosts: Hosts) -> None:
        self._cli, self._door = cli, hosts.outside()
        self._token = {"RAY_AUTH_TOKEN": hosts.token, "ZEROFLEET_STORAGE": str(cli.storage)}
        self._place = ["--backend", "ray", "--address", hosts.job_api]

    def __call__(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [*self._door, sys.executable, "-m", "zerofleet.launch", *words]
        variables = {**os.environ, **self._token, **environment}
        return subprocess.run(command, env=variables, cwd=self._cli.folder, capture_output=True, text=True, timeout=300)

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self("submit", str(self._cli.recipe), *words, *self._place)


def test_a_run_over_two_hosts_outlives_one_of_them(tmp_path, tmp_path_factory, tiny_corpus, tiny_cache):
    cli = Cli(tmp_path, tiny_corpus)
    run = cli.run("a")
    with Hosts(2, shared=[Path(tmp_path_factory.getbasetemp())], has_job_api=True) as hosts:
        laptop = Laptop(cli, hosts)
        with tempfile.TemporaryDirectory(prefix="zf-apart-", dir="/tmp") as apart:
            refused = laptop.submit("run.name=a", f"run.storage={apart}")
            assert refused.returncode == 2 and "is not seen by nodes host-0, host-1" in refused.stderr, refused.stderr
        started = laptop.submit("run.name=a", *JOB, *CLUSTER, "--detach")
        assert started.returncode == 0, started.stdout + started.stderr
        wait_for_step(run, 25, timeout_s=280)
        assert nodes_of(run, attempt=1) == {"host-0", "host-1"}
        assert driver_records(run)[-1].host == "host-0" and "is RUNNING" in laptop("status", "a").stdout
        hosts[1].kill()
        spare = hosts.add()
        attempt = 1
        while not (attempt > 1 and nodes_of(run, attempt) == {"host-0", spare.name}):
            wait_for_step(run, max(losses(run)) + 1, timeout_s=280)
            attempt = run.attempts()[-1].attempt
        wait_for_step(run, run.attempts()[-1].start_step + 10, timeout_s=280)
        followed = laptop("stop", "a")
        assert followed.returncode == 0, followed.stdout + followed.stderr
        assert "STOPPED" in laptop("logs", "-f", "a").stdout
    assert len(job_records(run)) == 1, "the driver has lived through it"
    assert hosts.token not in "".join(
        file.read_text(errors="replace") for file in cli.storage.rglob("*") if file.is_file()
    )
    done = losses(run)
    assert_audited(run, max(done))
    config = load_job(cli.recipe, ["run.name=unbroken", *JOB[:1], "checkpoint.interval_steps=0"]).train_config()
    unbroken = run_attempt(config, tiny_cache, 2, Plan(stop_after=max(done)), timeout_s=200).losses()
    assert done == {step: unbroken[step] for step in done}, "bitwise"


def nodes_of(run, attempt: int) -> set[str]:
    """The hosts that the ranks of an attempt run on."""
    return {e.data["node"] for e in run.events() if e.kind == "phase" and e.phase == "init" and e.attempt == attempt}
