"""Which nodes can hold a pod, and what is said when none can."""

from __future__ import annotations

import pytest

from tests.k8s.health.support import FakeApi, lines
from tests.k8s.support import CPU, H100, changed_profile, workload
from zerofleet.k8s.health.pools import judged, pools
from zerofleet.k8s.paths import NODE
from zerofleet.k8s.pods import worker_resources
from zerofleet.launch.workload import load_profile

PRODUCT = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
ROOM = {"cpu": "96", "memory": "1900Gi", "ephemeral-storage": "300Gi", "nvidia.com/gpu": "8", "rdma/ib": "8"}


def node(name="a", labels=PRODUCT, room=ROOM, taints=(TAINT,), ready="True", cordoned=False) -> dict:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": list(taints), "unschedulable": cordoned},
        "status": {"allocatable": room, "conditions": [{"type": "Ready", "status": ready}]},
    }


def verdict(*nodes, count=1, **changes):
    profile = changed_profile(H100, **changes)
    return judged("workers", profile.workers, worker_resources(profile), nodes, count)


@pytest.mark.parametrize(
    ("nodes", "level", "said"),
    [
        ([node(), node("b")], "ok", "2 of 2 nodes can hold a pod (cpu 96"),
        (
            [],
            "fail",
            "none of 0 nodes has the labels nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3 (no node has the label",
        ),
        ([node(labels={"nvidia.com/gpu.product": "A100"})], "fail", "nvidia.com/gpu.product is A100 on 1 nodes"),
        ([node(ready="Unknown"), node(cordoned=True)], "fail", "none of the 2 nodes is ready"),
        (
            [node(taints=[TAINT, {"key": "spot", "effect": "NoExecute"}])],
            "fail",
            "such as spot:NoExecute: add it to workers.tolerations",
        ),
        ([node(taints=[{"key": "x", "effect": "PreferNoSchedule"}])], "ok", "1 of 1"),
        (
            [node(room={**ROOM, "nvidia.com/gpu": "0"})],
            "fail",
            "a has 0 of 8 nvidia.com/gpu: see whether the device plugin",
        ),
        ([node(room={k: v for k, v in ROOM.items() if k != "rdma/ib"})], "fail", "no of 8 rdma/ib"),
        ([node(room={**ROOM, "cpu": "95900m"})], "fail", "95900m of 96 cpu: lower workers.cpus"),
        (
            [node(room={**ROOM, "memory": "1Gi", "cpu": "1"}), node("b", room={**ROOM, "cpu": "95"})],
            "fail",
            "b has 95 of 96 cpu",
        ),
    ],
)
def test_a_pool_of_gpu_nodes(nodes, level, said):
    check = verdict(*nodes)
    assert check.level == level and said in check.text, check.text


def test_fewer_nodes_than_the_profile_says_are_a_warning():
    assert verdict(node(), count=16).level == "warn"
    full = [node(str(number)) for number in range(2)]
    assert verdict(*full, count=2).level == "ok"


@pytest.mark.parametrize(
    ("overrides", "there", "level", "said"),
    [
        (
            ["cluster.nodes=3"],
            2,
            "fail",
            "2 nodes can hold a pod and the recipe takes 3 at least: lower its cluster.nodes",
        ),
        (["cluster.nodes=3", "cluster.min_nodes=2"], 2, "warn", "the profile says 16"),
        (["cluster.nodes=3", "cluster.min_nodes=2"], 1, "fail", "the recipe takes 2 at least"),
        (["cluster.nodes=3"], 16, "ok", "16 of 16"),
    ],
)
def test_the_nodes_that_a_recipe_takes_count(overrides, there, level, said):
    nodes = [node(str(number)) for number in range(there)]
    cluster = workload(H100, "train.global_batch_size=768", *overrides).cluster
    api = FakeApi({NODE.cluster_path(): {"items": nodes}})
    *_, check = pools(api, load_profile(H100), cluster)
    assert check.level == level and said in check.text, check.text


def test_a_recipe_of_more_nodes_than_the_profile_says():
    cluster = workload(CPU, "cluster.nodes=4", "cluster.min_nodes=1").cluster
    profile = changed_profile(CPU, workers__max_nodes=2)
    room = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "300Gi"}
    api = FakeApi({NODE.cluster_path(): {"items": [node(str(n), {}, room, ()) for n in range(2)]}})
    *_, check = pools(api, profile, cluster)
    assert check.level == "warn", check.text


def test_a_toleration_with_a_value_is_for_that_value():
    taint = {"key": "team", "value": "a", "effect": "NoSchedule"}
    for value, level in (("a", "ok"), ("b", "fail")):
        tolerations = [{"key": "team", "operator": "Equal", "value": value}]
        assert verdict(node(taints=[taint]), workers__tolerations=tolerations).level == level


def test_both_pools_are_looked_at():
    cpu = node("c", {"node-pool": "cpu"}, {"cpu": "8", "memory": "32Gi"}, ())
    said = lines(pools(FakeApi({NODE.cluster_path(): {"items": [cpu, node()]}}), load_profile(H100)))
    assert [line.split(":")[0] for line in said] == ["ok head", "warn workers"]
    everywhere = lines(pools(FakeApi({NODE.cluster_path(): {"items": [cpu]}}), load_profile(CPU)))
    assert everywhere[0].startswith("ok head: 1 of 1") and everywhere[1].startswith("ok workers")
