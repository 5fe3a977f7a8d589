"""A node that Ray drains, as a preemption with notice or `ray drain-node` does: the run leaves it saved, and no step is lost or repeated."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli import Cli, losses, positions, wait_for_step
from zerofleet.benchmarks.hosts.harness import Hosts, why_not

pytestmark = [
    pytest.mark.integration,
    pytest.mark.further,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

JOB = ["train.steps=5000", "train.global_batch_size=32", "checkpoint.interval_steps=5000"]
"""Steps enough for any machine: both runs are stopped."""
NODE_IDS = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps({node["NodeManagerHostname"]: node["NodeID"] for node in ray.nodes()}))
"""


def drain(hosts: Hosts, name: str, notice_s: int) -> None:
    told = hosts[0].run([sys.executable, "-c", NODE_IDS, hosts.ray_address])
    assert told.returncode == 0, told.stderr
    node_id = json.loads(told.stdout.splitlines()[-1])[name]
    fields = {
        "address": hosts.ray_address,
        "node-id": node_id,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": "the cloud wants it back",
        "deadline-remaining-seconds": str(notice_s),
    }
    options = [part for field, value in fields.items() for part in (f"--{field}", value)]
    done = hosts[0].run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *options])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_drained_node_is_left_before_its_notice_is_over(tmp_path, tmp_path_factory, tiny_corpus, tiny_cache):
    cli = Cli(tmp_path, tiny_corpus)
    run = cli.run("drained")
    with Hosts(3, shared=[Path(tmp_path_factory.getbasetemp())]) as hosts:
        cluster = {"address": hosts.ray_address, "nodes": 2, "ranks_per_node": 1, "cpus_per_rank": 2}
        command = [sys.executable, "-m", "zerofleet.launch", "submit", str(cli.recipe), "run.name=drained", *JOB]
        settings = [f"cluster.{name}={value}" for name, value in cluster.items()]
        driver = hosts[0].start([*command, *settings], {"ZEROFLEET_STORAGE": str(cli.storage)})
        wait_for_step(run, 5)
        drained = node_of(run, rank=1)
        assert drained != hosts[0].name, "with the driver's own host the run would go too"
        drain(hosts, drained, notice_s=60)
        while len(attempts := run.attempts()) < 2:
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.05)
        wait_for_step(run, attempts[1].start_step + 5)
        run.request("stop")
        print(*driver.communicate(timeout=60))
    assert driver.returncode == 0
    first, second = attempts
    last = max(r["step"] for r in run.read("metrics") if r["kind"] == "step" and r["attempt"] == first.attempt)
    assert second.start_step == last, "nothing is repeated"
    assert node_of(run, rank=1) != drained, "the spare"
    said = [event.data["why"] for event in run.events() if event.kind == "state" and event.data["to"] == "RESIZING"]
    assert len(said) == 1 and said[0].startswith(f"node {drained} (in ") and "will be taken away" in said[0]
    assert not [event for event in run.events() if event.kind == "verdict"], "a notice is no failure"
    done = losses(run)
    assert positions(run) == list(range(max(done) * 32)), "every position once"
    assert cli.submit("unbroken", *JOB, "--detach").returncode == 0
    wait_for_step(cli.run("unbroken"), max(done))
    assert cli("stop", "unbroken").returncode == 0
    unbroken = losses(cli.run("unbroken"))
    assert done == {step: unbroken[step] for step in done}, "bitwise"


def node_of(run, rank: int) -> str:
    """The name of the host that a rank of the newest attempt runs on."""
    return [e.data["node"] for e in run.events() if e.kind == "phase" and e.phase == "init" and e.rank == rank][-1]
