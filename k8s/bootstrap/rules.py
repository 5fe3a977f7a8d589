"""What is wrong with a profile as far as the platform goes: what could not be made of it, or would not let its runs work."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from zerofleet.cluster.config import Finding
from zerofleet.k8s.pods import node_selector
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.rules.lifecycle import queue_findings
from zerofleet.k8s.rules.naming import error, label_findings, warning
from zerofleet.k8s.rules.security import pod_security_findings

_OUTSIDE = ("WANDB_API_KEY", "HF_TOKEN")
"""Variables whose services are on the internet."""


def lint_platform(profile: Profile) -> list[Finding]:
    """Errors first; each with its reason, numbers and remedy."""
    rules = (label_findings, queue_findings, pod_security_findings, _quota, _claim, _egress, _host_network)
    findings = [finding for rule in rules for finding in rule(profile)]
    return sorted(findings, key=lambda finding: finding.level)


def _quota(profile: Profile) -> Iterator[Finding]:
    queue = profile.queue
    if queue.kind != "kueue" or queue.cluster_queue:
        return
    if not profile.workers.max_nodes:
        yield error(
            "workers.max_nodes",
            "it is not known, and the quota of the ClusterQueue is made of it: say how many nodes the pool has, or name a ClusterQueue that is "
            "there already (queue.cluster_queue)",
        )
    if queue.topology and not node_selector(profile.workers):
        yield error(
            "queue.topology",
            "Kueue refuses a ResourceFlavor with a topology and no node labels: name the nodes by workers.node_selector or workers.gpu_product",
        )


def _claim(profile: Profile) -> Iterator[Finding]:
    storage = profile.storage
    if storage.size_gib and not storage.claim:
        yield error("storage.size_gib", "it is the size of a claim that has no name: set storage.claim, or remove it")
    if storage.storage_class and not storage.size_gib:
        yield error(
            "storage.storage_class",
            "it has no effect on a claim that is there already: set storage.size_gib to have it made, or remove it",
        )


def _egress(profile: Profile) -> Iterator[Finding]:
    for number, peer in enumerate(profile.network.egress):
        where = f"network.egress.{number}"
        if (peer.cidr is None) == (peer.namespace is None):
            yield error(where, "it names who is reached by either `cidr` or `namespace`: give exactly one")
        elif peer.cidr is not None:
            yield from _cidr(f"{where}.cidr", peer.cidr)
    if profile.network.egress:
        return
    remedy = "name its addresses, such as network.egress=[{cidr: 0.0.0.0/0, ports: [443]}]"
    if profile.storage.url:
        yield error(
            "network.egress",
            f"run folders lie in {profile.storage.url.partition('://')[0]}, and the policies would let no pod reach it: {remedy}",
        )
    elif outside := [entry.variable for entry in profile.secret_env if entry.variable in _OUTSIDE]:
        yield warning(
            "network.egress",
            f"{' and '.join(outside)} are for services outside, and the policies let no pod reach them: {remedy}",
        )
    if profile.lifecycle.autoscaling:
        yield error(
            "network.egress",
            "Ray's autoscaler on the head asks the API server for pods, and the policies would not let it: name the API server's address and port",
        )


def _cidr(where: str, text: str) -> Iterator[Finding]:
    try:
        ipaddress.ip_network(text)
    except ValueError as problem:
        yield error(where, f"{problem}: give a range of addresses, such as 10.0.8.0/24")


def _host_network(profile: Profile) -> Iterator[Finding]:
    for number, cidr in enumerate(profile.network.node_cidrs):
        yield from _cidr(f"network.node_cidrs.{number}", cidr)
    if profile.fabric.host_network and not profile.network.node_cidrs:
        yield error(
            "network.node_cidrs",
            "with fabric.host_network workers speak from their nodes' addresses, which no selector of pods matches: the head would not hear them. "
            "Give the nodes' range",
        )
    if profile.network.node_cidrs and not profile.fabric.host_network:
        yield error(
            "network.node_cidrs", "it has no effect without fabric.host_network: workers have addresses of their own"
        )
