"""Why the scheduler places a pod nowhere, from its own words in the pod's condition."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from zerofleet.k8s.reasons.reason import Kind, Reason

_SHORT = re.compile(r"(\d+) Insufficient ([\w./-]*\w)")
_TAINT = re.compile(r"(\d+) node\(s\) had (?:untolerated )?taint \{([^:}]+):\s*([^}]*)\}")
_TAINTS = re.compile(r"(\d+) node\(s\) had untolerated taint\(s\)")
"""Since Kubernetes 1.35, and in patched 1.34: which taints, only an administrator sees."""
_ELSEWHERE = re.compile(r"(\d+) node\(s\) had volume node affinity conflict")
_NO_MATCH = re.compile(
    r"(\d+) node\(s\) didn't (?:match|satisfy) ((?:Pod's )?node (?:affinity/selector|selector|affinity))", re.IGNORECASE
)
_APART = re.compile(
    r"(\d+) node\(s\) didn't (?:match|satisfy) (?:pod )?(?:affinity/anti-affinity|pod anti-affinity|anti-affinity)[\w /-]*",
    re.IGNORECASE,
)
_NODES = re.compile(r"\d+/(\d+) nodes are available")
_NO_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" (?:not found|is being deleted)', re.IGNORECASE)
_UNBOUND = (
    "unbound immediate PersistentVolumeClaim",
    "waiting for first consumer",
    "waiting for ephemeral volume controller to create the persistentvolumeclaim",
    "did not have enough free storage",
)
_OF_SYSTEM = ("node-role.kubernetes.io/", "node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
"""Taints of nodes that are not meant for jobs, or are broken."""


def scheduling_reason(pod: dict[str, Any], claims: tuple[dict[str, Any], ...]) -> Reason | None:
    """None when the scheduler has not said that it cannot place the pod."""
    conditions = pod.get("status", {}).get("conditions") or []
    said = next((c for c in conditions if c.get("type") == "PodScheduled" and c.get("status") == "False"), None)
    if said is None or not (message := " ".join(str(said.get("message") or "").split())):
        return None
    name = pod["metadata"]["name"]
    words = f"The scheduler's words: {message}"
    return _volume(pod, name, message, claims) or _node(pod, name, message, words)


def _volume(pod: dict[str, Any], name: str, message: str, claims: tuple[dict[str, Any], ...]) -> Reason | None:
    if missing := _NO_CLAIM.search(message):
        return Reason(
            "unbound volume",
            f"pod {name} mounts the PersistentVolumeClaim {missing[1]!r}, which is not there: create it in this namespace, or correct "
            "storage.claim in the profile",
        )
    if not any(text in message for text in _UNBOUND):
        return None
    phases = {claim["metadata"]["name"]: claim.get("status", {}).get("phase", "Pending") for claim in claims}
    unbound = [claim for claim in _mounted(pod) if phases.get(claim) != "Bound"]
    if not unbound:
        return None  # bound since the scheduler looked
    named = ", ".join(f"{claim!r}" + (f" ({phases[claim]})" if claim in phases else "") for claim in unbound)
    return Reason(
        "unbound volume",
        f"pod {name} waits for the PersistentVolumeClaim {named}, which has no volume: see its events (kubectl describe pvc "
        f"{' '.join(unbound)}); its storage class must exist and be able to make a volume with this access mode",
    )


def _node(pod: dict[str, Any], name: str, message: str, words: str) -> Reason:
    """The reason that keeps most nodes away. Of those with as many nodes the first, since what the scheduler names is worth more."""
    nodes = found[1] if (found := _NODES.search(message)) else "all"
    ranked = [*_named(pod, name, message, words, nodes), *_nameless(pod, name, message, words, nodes)]
    if not ranked:
        return Reason(
            "no matching node", f"pod {name} fits no node. {words}. Compare it with the profile's head and workers"
        )
    return max(ranked, key=lambda each: each[0])[1]


def _nameless(pod: dict[str, Any], name: str, message: str, words: str, nodes: str) -> Iterator[tuple[int, Reason]]:
    """What the scheduler only counts, with the number of nodes."""
    if tainted := _TAINTS.search(message):
        yield (
            int(tainted[1]),
            Reason(
                "untolerated taint",
                f"pod {name} fits no node: {tainted[1]} of {nodes} nodes have taints that the pods do not tolerate. `zerofleet doctor --backend kuberay "
                f"--profile P` as an administrator names them: add them to tolerations in the profile if they are meant for this job. {words}",
            ),
        )
    if elsewhere := _ELSEWHERE.search(message):
        claims = ", ".join(repr(claim) for claim in _mounted(pod)) or "that it mounts"
        yield (
            int(elsewhere[1]),
            Reason(
                "no matching node",
                f"pod {name} fits no node: {elsewhere[1]} of {nodes} nodes cannot reach the volume of the PersistentVolumeClaim {claims}, which is in another "
                "zone or on another host. Correct node_selector in the profile, or make a claim that all nodes of the pool reach "
                f"(kubectl describe pv tells where it is). {words}",
            ),
        )


def _named(pod: dict[str, Any], name: str, message: str, words: str, nodes: str) -> Iterator[tuple[int, Reason]]:
    """What the scheduler names, with the number of nodes: of several the one that stands most in the way."""
    short = {resource: count for count, resource in _SHORT.findall(message)}
    taints = [(key.strip(), value.strip(), count) for count, key, value in _TAINT.findall(message)]
    foreign = [taint for taint in taints if not taint[0].startswith(_OF_SYSTEM)]
    gpus = next((resource for resource in short if "gpu" in resource.lower()), None)
    unmatched, apart = _NO_MATCH.search(message), _APART.search(message)
    if foreign and (not short or any("gpu" in key.lower() for key, _, _ in foreign)):
        key, value, count = next((taint for taint in foreign if "gpu" in taint[0].lower()), foreign[0])
        kind: Kind = "untolerated taint"
        sentence = (
            f"fits no node: {count} of {nodes} nodes have the taint {key}{f'={value}' if value else ''}, which it does not tolerate. Add "
            f"{{key: {key}}} to tolerations in the profile if they are meant for this job"
        )
    elif gpus is not None:
        kind, count = "not enough GPUs", short[gpus]
        sentence = (
            f"asks for {_asked(pod, gpus)} {gpus}, and {count} of {nodes} nodes have fewer free: wait until other jobs end, lower "
            "cluster.nodes, or ask the platform team for nodes"
        )
    elif unmatched and (unmatched[1] == nodes or not short):
        kind, count = "no matching node", unmatched[1]
        sentence = (
            f"fits no node: {count} of {nodes} nodes lack the labels that it selects. Correct node_selector or gpu_product in the profile, "
            "or ask the platform team for such nodes"
        )
    elif short:
        kind, (resource, count) = "not enough of a resource", next(iter(short.items()))
        sentence = (
            f"asks for {_asked(pod, resource)} of {resource}, and {count} of {nodes} nodes have less free: wait until other jobs end, or "
            "lower what head or workers ask for in the profile (no node may be so large)"
        )
    elif apart:
        kind, count = "not enough of a resource", apart[1]
        sentence = "needs a node that holds no other worker of the run, and there are too few: lower cluster.nodes, or ask for nodes"
    elif taints:
        kind, (key, _, count) = "no matching node", taints[0]
        sentence = (
            f"fits no node: {count} of {nodes} nodes have the taint {key}, so they are broken, new, or not meant for jobs. Ask the "
            "platform team"
        )
    else:
        return
    yield int(count), Reason(kind, f"pod {name} {sentence}. {words}")


def _mounted(pod: dict[str, Any]) -> list[str]:
    """Names of its claims, those included that the pod brings itself: Kubernetes names them after pod and volume."""
    found = []
    for volume in pod["spec"].get("volumes", []):
        if "persistentVolumeClaim" in volume:
            found.append(volume["persistentVolumeClaim"]["claimName"])
        elif "ephemeral" in volume:
            found.append(f"{pod['metadata']['name']}-{volume['name']}")
    return found


def _asked(pod: dict[str, Any], resource: str) -> str:
    """What the pod's containers ask for, as it is written."""
    for container in pod["spec"].get("containers", []):
        resources = container.get("resources") or {}
        if amount := (resources.get("requests") or resources.get("limits") or {}).get(resource):
            return str(amount)
    return "some"
