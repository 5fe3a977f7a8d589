"""Profiles that reach every branch of what the platform is made of, and a reading of NetworkPolicies."""

from __future__ import annotations

import ipaddress
from typing import Any

from tests.k8s.support import CPU, H100, changed_profile
from zerofleet.k8s.profile import Profile

VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "cpu": (CPU, {}),
    "h100": (H100, {}),
    "volcano": (H100, {"queue": {"kind": "volcano", "name": "q"}}),
    "volcano without bound": (H100, {"queue": {"kind": "volcano", "name": "q"}, "workers__max_nodes": 0}),
    "volcano's own": (H100, {"queue": {"kind": "volcano", "name": "default"}}),
    "kueue on one pool": (CPU, {"queue": {"kind": "kueue", "name": "q"}, "workers__max_nodes": 3}),
    "kueue with a queue that is there": (CPU, {"queue": {"kind": "kueue", "name": "q", "cluster_queue": "all"}}),
    "efa": (
        H100,
        {"fabric": {"kind": "efa", "resource": "vpc.amazonaws.com/efa", "devices": 32, "hugepages_2mi_gib": 5}},
    ),
    "host network": (
        H100,
        {
            "fabric": {"kind": "infiniband", "host_network": True},
            "security__pod_security": "privileged",
            "network__node_cidrs": ["10.1.0.0/16"],
        },
    ),
    "store inside": (CPU, {"network__egress": [{"namespace": "minio", "ports": [9000]}, {"cidr": "10.9.0.0/16"}]}),
    "storage class": (CPU, {"storage__storage_class": "nfs"}),
    "monitored": (CPU, {"monitoring": {"prometheus_operator": True}}),
    "nobody's": (CPU, {"security": {}, "storage__size_gib": 0}),
}


def variant(name: str) -> Profile:
    path, changes = VARIANTS[name]
    return changed_profile(path, **changes)


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


class Pod:
    """One end of a connection: a pod with labels in a namespace, or an address outside."""

    def __init__(self, namespace: str = "", labels: dict[str, str] | None = None, address: str = "") -> None:
        self.namespace, self.labels, self.address = namespace, labels or {}, address


def allowed(policies: list[dict[str, Any]], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """As NetworkPolicies mean it: what a policy selects for a direction is closed but for the rules of all that select it."""
    return all(
        _side(policies, own, other, direction, port, protocol)
        for own, other, direction in ((source, target, "Egress"), (target, source, "Ingress"))
    )


def _side(policies, own: Pod, other: Pod, direction: str, port: int, protocol: str) -> bool:
    chosen = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == own.namespace
        and direction in policy["spec"]["policyTypes"]
        and policy["spec"]["podSelector"].get("matchLabels", {}).items() <= own.labels.items()
    ]
    key, peers = direction.lower(), "to" if direction == "Egress" else "from"
    rules = [rule for spec in chosen for rule in spec.get(key, [])]
    return not chosen or any(
        any(_is(peer, own, other) for peer in rule[peers])
        and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        for rule in rules
    )


def _is(peer: dict[str, Any], own: Pod, other: Pod) -> bool:
    if "ipBlock" in peer:
        return bool(other.address) and ipaddress.ip_address(other.address) in ipaddress.ip_network(
            peer["ipBlock"]["cidr"]
        )
    names = peer.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": own.namespace}})[
        "matchLabels"
    ]
    is_there = names == {"kubernetes.io/metadata.name": other.namespace}
    return is_there and peer.get("podSelector", {}).get("matchLabels", {}).items() <= other.labels.items()
