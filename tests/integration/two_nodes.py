"""A group over two raylets on one machine, in a process of its own with a Ray token: prints what happened as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from zerofleet.cluster.placement import Ask
from zerofleet.cluster.ray_group import RayGroup
from zerofleet.cluster.spec import JobSpec, NodeSpec
from zerofleet.trainer.config import ModelConfig, TrainConfig
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.events import Event

CONFIG = TrainConfig(
    model=ModelConfig(config={"model_type": "llama"}),
    data={"files": ["python-stdlib"]},
    train={"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
).model_dump_json()
RANKS = "tests.integration.fake_ranks"


def poll_until(group: RayGroup, kind: str, count: int, timeout_s: float = 30) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + timeout_s
    while len([e for e in events if e.kind == kind]) < count and time.monotonic() < deadline:
        events += group.poll(0.5)
    return [event for event in events if event.kind == kind]


def place(group: RayGroup, job: JobSpec, timeout_s: float = 40) -> str:
    deadline = time.monotonic() + timeout_s
    while not (placement := group.place(job, 0.5)).is_ready and time.monotonic() < deadline:
        pass
    return placement.missing


def wait_until_dead(node_id: str, timeout_s: float = 30) -> None:
    """Ray learns of a killed raylet by its own health checks, after its agents were lost."""
    deadline = time.monotonic() + timeout_s
    while any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id):
        assert time.monotonic() < deadline, f"Ray still takes the killed node {node_id} for alive after {timeout_s:g} s"
        time.sleep(0.1)


def main(folder: Path) -> None:
    os.environ["ZEROFLEET_NODE"] = "first"  # as a pod has it: both raylets are on this host
    head = {"num_cpus": 2, "object_store_memory": 8 * 10**7}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
    os.environ["ZEROFLEET_NODE"] = "second"
    second = cluster.add_node(num_cpus=2, object_store_memory=8 * 10**7)
    cluster.wait_for_nodes()
    spec = NodeSpec("r", 0, "cpu", str(folder), str(folder), preload=f"{RANKS}:preload")
    job = JobSpec("r", CONFIG, str(folder), f"{RANKS}:say_hello")
    group = RayGroup(lambda: None, Ask(nodes=2, ranks_per_node=2, cpus=2, gpus=0), spec, is_ours=True)
    seen = {"missing": place(group, job), "free": ray.available_resources().get("CPU", 0.0)}

    group.start(job, 1, 4, "rank")
    hellos = poll_until(group, "hello", 4)
    seen["worlds"] = sorted([e.rank, e.data["local_rank"], e.data["node_rank"], e.data["world_size"]] for e in hellos)
    seen["agents"] = len({e.data["agent"] for e in hellos})
    seen["killed"] = sorted(e.rank for e in group.kill() if e.kind == "exit" and e.data["killed"])

    os.environ["ZEROFLEET_NODE"] = "third"
    third = cluster.add_node(num_cpus=2, object_store_memory=8 * 10**7)  # a spare, before one is lost
    seen["doomed"] = [n.rank for n in group._nodes.values() if n.resources.node_id == second.node_id]
    cluster.remove_node(second, allow_graceful=False)
    seen["lost"] = [e.data["node_rank"] for e in poll_until(group, "node_lost", 1, 60)]
    seen["missing_after_loss"] = place(group, job)
    group.start(job, 2, 4, "rank")
    seen["ranks_after_loss"] = sorted(e.rank for e in poll_until(group, "hello", 4) if e.attempt == 2)
    group.kill()
    seen["left_out_without_a_spare"] = group.leave_out(["third"])
    os.environ["ZEROFLEET_NODE"] = "fourth"
    cluster.add_node(num_cpus=2, object_store_memory=8 * 10**7)
    seen["left_out"] = group.leave_out(["third"])
    seen["missing_without_it"] = place(group, job)
    seen["nodes_without_it"] = sorted(node.name for node in group._nodes.values())
    seen["left_out_again"] = group.leave_out(["fourth"])
    group.close()

    ray.init(address=cluster.address, namespace="r", log_to_driver=False)
    wait_until_dead(second.node_id)
    try:
        RayGroup(lambda: None, Ask(4, 2, 2, 0), spec, is_ours=True).place(job, 5.0)
    except UserError as error:
        seen["never"] = str(error)
    other = RayGroup(lambda: None, Ask(4, 2, 2, 0), spec, is_ours=False)
    ends_at = time.monotonic() + 30
    while "3 found" not in other.place(job, 0.1).missing and time.monotonic() < ends_at:
        time.sleep(0.1)  # Ray gives back what the group before held when its processes have ended
    seen["waiting"] = other.place(job, 0.1).missing
    other.close()
    assert third
    cluster.shutdown()
    sys.stdout.write("SEEN " + json.dumps(seen) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
