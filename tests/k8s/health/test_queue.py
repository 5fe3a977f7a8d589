"""What is said of whoever admits runs."""

from __future__ import annotations

import pytest

from tests.k8s.health.support import FakeApi, at, lines, one
from tests.k8s.support import CPU, H100, changed_profile
from zerofleet.k8s.health.queue import classes, operator, queue
from zerofleet.k8s.paths import DEPLOYMENT, LOCAL_QUEUE, RUNTIME, VOLCANO_QUEUE, WORKLOAD_PRIORITY
from zerofleet.launch.workload import load_profile

VOLCANO = {"queue": {"kind": "volcano", "name": "q"}}


def deployed(
    tag: str = "v1.7.0", namespace: str = "kuberay-operator", ready: int = 1, args: tuple[str, ...] = ()
) -> dict:
    container = {"image": f"quay.io/kuberay/operator:{tag}", "args": list(args)}
    item = {
        "metadata": {"name": "kuberay-operator", "namespace": namespace},
        "spec": {"template": {"spec": {"containers": [container]}}},
        "status": {"readyReplicas": ready},
    }
    return {DEPLOYMENT.cluster_path(): {"items": [item]}}


@pytest.mark.parametrize(
    ("found", "level", "said"),
    [
        (deployed(), "ok", "KubeRay 1.7.0 in namespace kuberay-operator"),
        (deployed("v1.8.1"), "ok", "1.8.1"),
        (deployed("nightly"), "ok", "nightly"),
        (deployed("v1.6.2"), "fail", "older than the profile's 1.7.0"),
        (deployed("v1.10.0"), "ok", "1.10.0"),
        (deployed(namespace="ray"), "fail", "operator.namespace=ray"),
        (deployed(ready=0), "fail", "no pod that is ready"),
        ({DEPLOYMENT.cluster_path(): {"items": []}}, "fail", "install 1.7.0"),
    ],
)
def test_the_operator(found, level, said):
    check = one(operator(FakeApi(found), load_profile(CPU)))
    assert check.level == level and said in check.text


def test_the_operator_knows_of_volcano():
    profile = changed_profile(H100, **VOLCANO)
    assert one(operator(FakeApi(deployed()), profile)).level == "warn"
    assert one(operator(FakeApi(deployed(args=("--batch-scheduler=volcano",))), profile)).level == "ok"


def local(status: str = "True", policy: str = "None", conditions: bool = True) -> dict:
    active = {"type": "Active", "status": status, "message": "Can't submit new workloads to clusterQueue"}
    return at(
        LOCAL_QUEUE,
        "research",
        spec={"clusterQueue": "all", "stopPolicy": policy},
        status={"conditions": [active] if conditions else [], "pendingWorkloads": 2},
    )


@pytest.mark.parametrize(
    ("found", "level", "said"),
    [
        (local(), "ok", "LocalQueue research of ClusterQueue all is active, 2 jobs wait in it"),
        (local(status="False"), "fail", "Can't submit new workloads"),
        (local(policy="Hold"), "fail", "was stopped (Hold)"),
        (local(conditions=False), "fail", "not looked at by Kueue"),
        ({}, "fail", "k8s bootstrap"),
    ],
)
def test_kueues_queue(found, level, said):
    check = one(queue(FakeApi(found), load_profile(H100)))
    assert check.level == level and said in check.text


@pytest.mark.parametrize(("state", "level"), [("Open", "ok"), ("Closing", "fail"), ("", "fail"), (None, "fail")])
def test_volcanos_queue(state, level):
    found = {} if state is None else {VOLCANO_QUEUE.cluster_path("q"): {"status": {"state": state}}}
    assert one(queue(FakeApi(found), changed_profile(H100, **VOLCANO))).level == level


def test_without_a_queue_nothing_is_asked():
    api = FakeApi()
    assert [*queue(api, load_profile(CPU)), *classes(api, load_profile(CPU))] == [] and api.asked == []


def test_classes_that_are_named_are_there():
    profile = changed_profile(H100, queue__priority_class="high", workers__runtime_class="nvidia")
    api = FakeApi({WORKLOAD_PRIORITY.cluster_path("high"): {}})
    assert lines(classes(api, profile)) == [
        "ok classes: WorkloadPriorityClass high is there",
        "fail classes: RuntimeClass nvidia is not there: make it, or correct workers.runtime_class",
    ]
    assert (
        one(
            classes(
                FakeApi({RUNTIME.cluster_path("nvidia"): {}}), changed_profile(CPU, workers__runtime_class="nvidia")
            )
        ).level
        == "ok"
    )
