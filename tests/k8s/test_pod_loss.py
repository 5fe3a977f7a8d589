"""What Kubernetes did to a pod: each way to lose one, as its controller leaves the pod, becomes one sentence."""

from __future__ import annotations

import pytest

from tests.k8s.objects import NOW, pod, stamp
from zerofleet.k8s.pod_loss import loss_of, restarts, vanished

DELETED = {"deletionTimestamp": stamp(NOW + 60), "deletionGracePeriodSeconds": 60}
OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


def lost(status: dict | None = None, metadata: dict | None = None) -> dict:
    found = pod("w", node="node-2", phase="Running")
    found["status"] |= status or {}
    found["metadata"] |= metadata or {}
    return found


def disrupted(reason: str, message: str = "") -> list[dict]:
    return [
        {"type": "Ready", "status": "True"},
        {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message},
    ]


def container(count: int = 0, **states) -> list[dict]:
    return [{"name": "ray-worker", "restartCount": count, **states}]


@pytest.mark.parametrize(
    ("status", "metadata", "cause", "words"),
    [
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory. "},
            {},
            "evicted",
            "evicted by its kubelet: The node was low on resource: memory. Ask for what the pods use (workers.memory_gib",
        ),
        (
            {"phase": "Failed", "reason": "Terminated", "message": "Pod was terminated in response to node shutdown."},
            {},
            "shut down",
            "Pod was terminated in response to node shutdown",
        ),
        ({"phase": "Failed", "reason": "NodeShutdown"}, {}, "shut down", "the node shuts down"),
        ({"conditions": disrupted("EvictionByEvictionAPI")}, DELETED, "drained", "kubectl drain"),
        ({"conditions": disrupted("PreemptionByScheduler")}, DELETED, "preempted", "higher priority"),
        ({"conditions": disrupted("DeletionByTaintManager")}, DELETED, "tainted", "not ready"),
        ({"conditions": disrupted("DeletionByPodGC")}, {}, "node gone", "its node is gone"),
        ({"conditions": disrupted("Newer", "for a new reason")}, {}, "deleted", "for a new reason"),
        ({"containerStatuses": container(state=OOM)}, {}, "OOM-killed", "exit code 137"),
        ({"containerStatuses": container(1, state={"running": {}}, lastState=OOM)}, {}, "OOM-killed", "memory_gib"),
        ({}, DELETED, "deleted", "does not say which"),
        (
            {"phase": "Failed", "containerStatuses": container(state={"terminated": {"exitCode": 1}})},
            {},
            "ended",
            "ended with exit code 1",
        ),
        (
            {"phase": "Failed", "containerStatuses": container(state={"terminated": {"exitCode": 143}})},
            DELETED,
            "deleted",
            "was deleted",
        ),
        (
            {"conditions": disrupted("EvictionByEvictionAPI"), "containerStatuses": container(state=OOM)},
            DELETED,
            "drained",
            "drains the node",
        ),
    ],
)
def test_each_loss_has_one_cause(status, metadata, cause, words):
    found = loss_of(lost(status, metadata))
    assert found is not None and found.cause == cause
    assert (found.pod, found.node) == ("w", "node-2")
    assert found.sentence.startswith("pod w on node node-2 ") and words in found.sentence
    assert ".." not in found.sentence and "\n" not in found.sentence


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"phase": "Pending"},
        {"containerStatuses": container(state={"running": {}})},
        {"conditions": [{"type": "DisruptionTarget", "status": "False", "reason": "EvictionByEvictionAPI"}]},
    ],
)
def test_a_pod_that_nothing_has_happened_to_is_not_lost(status):
    assert loss_of(lost(status)) is None


def test_a_pod_that_is_gone_is_lost_with_the_cause_that_it_had():
    assert vanished(lost()).cause == "deleted" and "is gone" in vanished(lost()).sentence
    assert vanished(lost({"reason": "Evicted"})).cause == "evicted"


def test_lives_of_a_container_are_counted():
    assert restarts(lost()) == 0 and restarts(lost({"containerStatuses": container(2)})) == 2
