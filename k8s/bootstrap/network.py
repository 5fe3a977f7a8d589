"""Who may speak to whom: nobody, but the runs' pods among themselves, with DNS, KubeRay's operator, and what the profile names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zerofleet.k8s.bootstrap.platform_object import POD_LABELS, Document, platform_object
from zerofleet.k8s.names import HEAD
from zerofleet.k8s.profile import Peer, Profile

DASHBOARD_PORT = 8265
"""Of the head: KubeRay's operator asks there how the job stands."""
NODE_LOCAL_DNS = "169.254.20.10/32"
"""NodeLocal DNSCache, where a cluster has it."""
_OPERATOR_PODS = {"app.kubernetes.io/name": "kuberay-operator"}
_BOTH = ["Ingress", "Egress"]


def network(profile: Profile) -> Iterator[Document]:
    """Runs of one namespace can reach each other: a policy cannot say "the same run". Ray's token keeps them apart."""
    yield _policy(profile, "zerofleet-deny", {}, policyTypes=_BOTH)
    peers: list[dict[str, Any]] = [{"podSelector": {"matchLabels": dict(POD_LABELS)}}]
    if profile.fabric.host_network:
        peers += [{"ipBlock": {"cidr": cidr}} for cidr in profile.network.node_cidrs]
    egress = [{"to": peers}, _dns(), *(_outside(peer) for peer in profile.network.egress)]
    yield _policy(profile, "zerofleet-runs", POD_LABELS, policyTypes=_BOTH, ingress=[{"from": peers}], egress=egress)
    head = {**POD_LABELS, "app.kubernetes.io/component": HEAD}
    ingress = [from_namespace(profile.operator.namespace, _OPERATOR_PODS, [DASHBOARD_PORT])]
    yield _policy(profile, "zerofleet-operator", head, policyTypes=["Ingress"], ingress=ingress)


def from_namespace(name: str, pods: dict[str, str], ports: list[int]) -> dict[str, Any]:
    """A rule of ingress: from pods with these labels in another namespace (empty: all of its pods), to these ports over TCP."""
    return {"from": [_pods_of(name, pods)], "ports": _ports(ports, "TCP")}


def _pods_of(namespace: str, labels: dict[str, str]) -> dict[str, Any]:
    """Kubernetes labels every namespace with its name, since 1.21."""
    found: dict[str, Any] = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    return {**found, "podSelector": {"matchLabels": dict(labels)}} if labels else found


def _dns() -> dict[str, Any]:
    servers = [_pods_of("kube-system", {"k8s-app": "kube-dns"}), {"ipBlock": {"cidr": NODE_LOCAL_DNS}}]
    return {"to": servers, "ports": [*_ports([53], "UDP"), *_ports([53], "TCP")]}


def _outside(peer: Peer) -> dict[str, Any]:
    to = _pods_of(peer.namespace, {}) if peer.namespace else {"ipBlock": {"cidr": peer.cidr}}
    return {"to": [to], **({"ports": _ports(peer.ports, peer.protocol)} if peer.ports else {})}


def _ports(ports: list[int], protocol: str) -> list[dict[str, Any]]:
    return [{"protocol": protocol, "port": port} for port in ports]


def _policy(profile: Profile, name: str, pods: dict[str, str], **spec: Any) -> Document:
    selector = {"matchLabels": dict(pods)} if pods else {}
    return platform_object(
        profile, "networking.k8s.io/v1", "NetworkPolicy", name, spec={"podSelector": selector, **spec}
    )
