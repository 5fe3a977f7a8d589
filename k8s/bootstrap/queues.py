"""What admits runs: Kueue's queues with the profile's nodes as their quota, or a queue of Volcano's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zerofleet.k8s.bootstrap.platform_object import Document, platform_object
from zerofleet.k8s.pods import head_resources, node_selector, submitter_requests, toleration, worker_resources
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.quantity import total

KUEUE, VOLCANO = "kueue.x-k8s.io/v1beta2", "scheduling.volcano.sh/v1beta1"
_HOST = "kubernetes.io/hostname"
_EXISTING = "default"
"""The queue that Volcano makes itself."""


def queues(profile: Profile) -> Iterator[Document]:
    if profile.queue.kind == "kueue":
        yield from _kueue(profile)
    elif profile.queue.kind == "volcano" and profile.queue.name != _EXISTING:
        yield _volcano(profile)


def own_name(profile: Profile) -> str:
    """Of what belongs to no namespace: two profiles may call their LocalQueues the same."""
    return f"{profile.namespace}-{profile.queue.name}"


def _kueue(profile: Profile) -> Iterator[Document]:
    if not profile.queue.cluster_queue:
        flavors = _quotas(profile)
        if profile.queue.topology:
            yield _topology(profile)
        yield from (_flavor(profile, name) for name in flavors)
        yield _cluster_queue(profile, flavors)
    spec = {"clusterQueue": profile.queue.cluster_queue or own_name(profile)}
    yield platform_object(profile, KUEUE, "LocalQueue", profile.queue.name or "", spec=spec)


def _quotas(profile: Profile) -> dict[str, dict[str, str]]:
    """What each flavor of nodes holds: the pool's workers, and a head and a submitter for each, since runs of one node are the most there can be.

    The head's first: a head that names no nodes would else count against the GPU nodes'.
    """
    heads = total([head_resources(profile), submitter_requests()], profile.workers.max_nodes)
    workers = total([worker_resources(profile)], profile.workers.max_nodes)
    if node_selector(profile.head) == node_selector(profile.workers):
        return {f"{own_name(profile)}-nodes": total([heads, workers])}
    return {f"{own_name(profile)}-head": heads, f"{own_name(profile)}-workers": workers}


def _flavor(profile: Profile, name: str) -> Document:
    """Its labels and tolerations are those that the pods have anyway: Kueue tells by them which pods a flavor is for, and by the tolerations
    which nodes count when it looks at the topology."""
    pool = profile.head if name.endswith("-head") else profile.workers
    spec: dict[str, Any] = {}
    if labels := node_selector(pool):
        spec["nodeLabels"] = labels
    if pool.tolerations:
        spec["tolerations"] = [toleration(each) for each in pool.tolerations]
    if profile.queue.topology and pool is profile.workers:
        spec["topologyName"] = own_name(profile)
    return platform_object(profile, KUEUE, "ResourceFlavor", name, in_namespace=False, spec=spec)


def _topology(profile: Profile) -> Document:
    assert profile.queue.topology is not None
    levels = list(dict.fromkeys([profile.queue.topology.level, _HOST]))
    spec = {"levels": [{"nodeLabel": level} for level in levels]}
    return platform_object(profile, KUEUE, "Topology", own_name(profile), in_namespace=False, spec=spec)


def _cluster_queue(profile: Profile, flavors: dict[str, dict[str, str]]) -> Document:
    """Every resource that a pod asks for is covered: Kueue admits no pod that asks for another."""
    covered = list(dict.fromkeys(resource for quota in flavors.values() for resource in quota))
    groups = [
        {
            "name": name,
            "resources": [{"name": resource, "nominalQuota": quota.get(resource, "0")} for resource in covered],
        }
        for name, quota in flavors.items()
    ]
    spec = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": profile.namespace}},
        "resourceGroups": [{"coveredResources": covered, "flavors": groups}],
    }
    return platform_object(profile, KUEUE, "ClusterQueue", own_name(profile), in_namespace=False, spec=spec)


def _volcano(profile: Profile) -> Document:
    """Without the number of nodes the queue has no bound."""
    spec: dict[str, Any] = {"weight": 1}
    if count := profile.workers.max_nodes:
        pods = [head_resources(profile), submitter_requests(), worker_resources(profile)]
        spec["capability"] = total(pods, count)
    return platform_object(profile, VOLCANO, "Queue", profile.queue.name or "", in_namespace=False, spec=spec)
