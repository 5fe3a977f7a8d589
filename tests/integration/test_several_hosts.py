"""Runs over several hosts (network namespaces, a raylet in each): one is killed, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.cli import Cli, losses, positions
from tests.support.hosts import Hosts, why_not
from zerofleet.launch.drivers import driver_records
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

STEPS = 60
JOB = [f"train.steps={STEPS}", "train.global_batch_size=32", "checkpoint.interval_steps=25"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory, tiny_corpus, tiny_cache):
    return Cli(tmp_path_factory.mktemp("several"), tiny_corpus)


@pytest.fixture(scope="module")
def unbroken(cli) -> dict[int, float]:
    """The losses of the same job on one host."""
    done = cli.submit("unbroken", *JOB)
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(cli.run("unbroken"))


@dataclass
class Fleet:
    """Hosts, and runs on them. Host 0 holds Ray's head and the drivers."""

    cli: Cli
    hosts: Hosts
    drivers: list[subprocess.Popen[str]] = field(default_factory=list)

    def submit(self, name: str, *settings: str) -> RunFolder:
        cluster = [f"cluster.address={self.hosts.ray_address}", "cluster.ranks_per_node=1", "cluster.cpus_per_rank=2"]
        command = [sys.executable, "-m", "zerofleet.launch", "submit", str(self.cli.recipe)]
        driver = self.hosts[0].start(
            [*command, f"run.name={name}", *JOB, *cluster, *settings], {"ZEROFLEET_STORAGE": str(self.cli.storage)}
        )
        self.drivers.append(driver)
        return self.cli.run(name)

    def wait_for_step(self, run: RunFolder, step: int, timeout_s: float = 180) -> None:
        deadline = time.monotonic() + timeout_s
        while max(losses(run), default=0) < step:
            if self.drivers[-1].poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"step {step} was not reached: {self.drivers[-1].communicate(timeout=5)}")
            time.sleep(0.02)

    def wait_for_replica(self, run: RunFolder, after: int, timeout_s: float = 180) -> int:
        """A step later than `after` that the buddies of both nodes have."""
        deadline = time.monotonic() + timeout_s
        while not (steps := [step for step in whole_replicas(run) if step > after]):
            if self.drivers[-1].poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no replica after step {after}: {self.drivers[-1].communicate(timeout=5)}")
            time.sleep(0.02)
        return steps[-1]

    def end(self, timeout_s: float = 150) -> str:
        out, err = self.drivers.pop().communicate(timeout=timeout_s)
        return out + err

    def host_of(self, run: RunFolder, rank: int) -> int:
        """The host that a rank of the newest attempt runs on."""
        name = [e for e in said(run, "phase") if e.phase == "init" and e.rank == rank][-1].data["node"]
        return next(i for i in range(len(self.hosts)) if self.hosts[i].name == name)


def said(run: RunFolder, kind: str) -> list[Event]:
    return [event for event in run.events() if event.kind == kind]


def whole_replicas(run: RunFolder) -> list[int]:
    """Steps of which both ranks' parts lie on the other's node."""
    ranks: dict[int, set[int]] = {}
    for event in said(run, "replicated"):
        if not event.data["message"]:
            ranks.setdefault(event.step, set()).add(event.rank)
    return sorted(step for step, heard in ranks.items() if heard == {0, 1})


@pytest.fixture
def fleet(cli, tmp_path_factory):
    with Hosts(3, shared=[Path(tmp_path_factory.getbasetemp())]) as hosts:
        yield Fleet(cli, hosts)


def test_a_killed_host_is_replaced_and_the_run_goes_on_from_its_buddys_memory(fleet, unbroken):
    run = fleet.submit("killed", "cluster.nodes=2")
    fleet.wait_for_step(run, 26)
    replica = fleet.wait_for_replica(run, 25)  # 25 is durable
    victim = fleet.host_of(run, 1)
    assert victim != 0, "the driver's own host would take the driver with it"
    fleet.hosts[victim].kill()
    killed_at = time.time()
    told = fleet.end()
    print(told[-3000:])
    assert losses(run) == unbroken, "bitwise"
    assert positions(run) == list(range(STEPS * 32)), "every position once"
    loaded = said(run, "loaded")[-1]
    assert loaded.data["from_memory"] and loaded.step >= replica, loaded
    first = next(e for e in run.read("metrics") if e["kind"] == "step" and e["attempt"] == 2)
    print(
        f"from the kill to the next step {first['start'] + first['duration_s'] - killed_at:.1f} s, from step {loaded.step}"
    )
    assert fleet.host_of(run, 1) not in (0, victim)
    assert len(driver_records(run)) == 1
