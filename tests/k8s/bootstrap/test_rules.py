"""Mistakes of a profile that the platform could not be made of."""

from __future__ import annotations

import pytest

from tests.k8s.support import CPU, H100, changed_profile
from zerofleet.k8s.bootstrap.rules import lint_platform

KUEUE = {"kind": "kueue", "name": "q"}
MISTAKES = {
    "no quota": (CPU, {"queue": KUEUE}, "workers.max_nodes", "name a ClusterQueue"),
    "topology without labels": (
        CPU,
        {"queue": {**KUEUE, "topology": {"level": "rack"}}, "workers__max_nodes": 2},
        "queue.topology",
        "no node labels",
    ),
    "cluster queue without kueue": (CPU, {"queue__cluster_queue": "a"}, "queue.cluster_queue", "only Kueue"),
    "queue without name": (CPU, {"queue__kind": "kueue", "workers__max_nodes": 2}, "queue.name", "name of its queue"),
    "size without claim": (CPU, {"storage__claim": None}, "storage.size_gib", "no name"),
    "class without size": (H100, {"storage__storage_class": "nfs"}, "storage.storage_class", "storage.size_gib"),
    "store that nobody reaches": (H100, {"network__egress": []}, "network.egress", "run folders lie in s3"),
    "autoscaler": (CPU, {"lifecycle__autoscaling": True}, "network.egress", "API server"),
    "egress to nobody": (CPU, {"network__egress": [{"ports": [443]}]}, "network.egress.0", "exactly one"),
    "egress to two": (
        CPU,
        {"network__egress": [{"cidr": "10.0.0.0/8", "namespace": "a"}]},
        "network.egress.0",
        "exactly one",
    ),
    "no range": (CPU, {"network__egress": [{"cidr": "10.0.0.1/8"}]}, "network.egress.0.cidr", "has host bits set"),
    "host network": (
        H100,
        {"fabric": {"kind": "infiniband", "host_network": True}, "security__pod_security": "privileged"},
        "network.node_cidrs",
        "would not hear them",
    ),
    "nodes for nothing": (CPU, {"network__node_cidrs": ["10.0.0.0/8"]}, "network.node_cidrs", "no effect"),
    "no range of nodes": (CPU, {"network__node_cidrs": ["x"]}, "network.node_cidrs.0", "give a range"),
    "host network in a restricted namespace": (
        H100,
        {"fabric": {"kind": "infiniband", "host_network": True}, "network__node_cidrs": ["10.0.0.0/8"]},
        "fabric.host_network",
        "refuses the workers",
    ),
    "label of others": (CPU, {"labels": {"ray.io/x": "y"}}, "labels.ray.io/x", "remove it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_said_with_its_remedy(name):
    path, changes, where, words = MISTAKES[name]
    found = [finding for finding in lint_platform(changed_profile(path, **changes)) if finding.level == "error"]
    assert [finding for finding in found if finding.where == where and words in finding.message], found


def test_services_outside_are_a_warning():
    profile = changed_profile(H100, network__egress=[], storage__url=None)
    (warning,) = [finding for finding in lint_platform(profile) if finding.where == "network.egress"]
    assert warning.level == "warning" and "WANDB_API_KEY and HF_TOKEN" in warning.message
