"""Do the profile's nodes exist, with room for a pod: labels, taints, allocatable resources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from zerofleet.cluster.config import Check, ClusterConfig
from zerofleet.k8s.api import Api
from zerofleet.k8s.paths import NODE
from zerofleet.k8s.pods import head_resources, node_selector, worker_resources
from zerofleet.k8s.profile import HeadPool, Profile, Toleration, WorkerPool
from zerofleet.k8s.quantity import amount
from zerofleet.k8s.workload import least_nodes

_BLOCKING = ("NoSchedule", "NoExecute")


def pools(api: Api, profile: Profile, recipe: ClusterConfig | None = None) -> Iterator[Check]:
    """`recipe`: the cluster of one that is to be run."""
    nodes = api.get(NODE.cluster_path())["items"]
    yield judged("head", profile.head, head_resources(profile), nodes, 1)
    count = max(profile.workers.max_nodes, recipe.nodes if recipe else 0)
    least = least_nodes(recipe) if recipe else 0
    yield judged("workers", profile.workers, worker_resources(profile), nodes, count, least)


def judged(
    name: str,
    pool: HeadPool | WorkerPool,
    needed: dict[str, str],
    nodes: Iterable[dict[str, Any]],
    count: int,
    least: int = 0,
) -> Check:
    """Whether `count` nodes of a pool can hold a pod each that asks for `needed`, and `least` at least, without which the recipe does not run.
    What else runs on them is the scheduler's to know. Pure."""
    nodes, selector = list(nodes), node_selector(pool)
    chosen = [node for node in nodes if selector.items() <= (node["metadata"].get("labels") or {}).items()]
    if not chosen:
        return Check("fail", name, _nowhere(selector, nodes))
    usable = [node for node in chosen if _is_ready(node)]
    if not usable:
        return Check("fail", name, f"none of the {len(chosen)} nodes is ready and open for pods: kubectl get nodes")
    if not (open_to := [node for node in usable if not _untolerated(node, pool.tolerations)]):
        (taint, _), *_ = Counter(t for node in usable for t in _untolerated(node, pool.tolerations)).most_common(1)
        return Check(
            "fail",
            name,
            f"all {len(usable)} nodes have taints that are not tolerated, such as {taint}: add it to {name}.tolerations",
        )
    fitting = [node for node in open_to if not _too_small(node, needed)]
    if not fitting:
        return Check("fail", name, _small(name, needed, open_to))
    if len(fitting) < least:
        return Check(
            "fail",
            name,
            f"{len(fitting)} nodes can hold a pod and the recipe takes {least} at least: lower its cluster.nodes or cluster.min_nodes, or add nodes",
        )
    if len(fitting) < count:
        return Check(
            "warn",
            name,
            f"{len(fitting)} nodes can hold a pod and the profile says {count}: a run that takes more waits. Correct workers.max_nodes, or add nodes",
        )
    return Check(
        "ok",
        name,
        f"{len(fitting)} of {len(chosen)} nodes can hold a pod ({', '.join(f'{key} {value}' for key, value in needed.items())})",
    )


def _nowhere(selector: dict[str, str], nodes: list[dict[str, Any]]) -> str:
    """No node has the labels: which values are there instead."""
    asked = ", ".join(f"{key}={value}" for key, value in selector.items())
    there = []
    for key, value in selector.items():
        values = Counter(str(labels[key]) for node in nodes if key in (labels := node["metadata"].get("labels") or {}))
        if value not in values:
            there.append(
                f"{key} is {', '.join(sorted(values))} on {values.total()} nodes"
                if values
                else f"no node has the label {key}"
            )
    found = f" ({'; '.join(there)})" if there else ""
    return f"none of {len(nodes)} nodes has the labels {asked}{found}: correct the profile. Nodes that are made on demand are not known before"


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions") or []
    is_up = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return is_up and not node.get("spec", {}).get("unschedulable")


def _untolerated(node: dict[str, Any], tolerations: list[Toleration]) -> list[str]:
    """Its taints that keep the pods away. An unschedulable node's own taint is another check's."""
    taints = [taint for taint in node.get("spec", {}).get("taints") or [] if taint["effect"] in _BLOCKING]
    return [
        f"{taint['key']}{'=' + taint['value'] if taint.get('value') else ''}:{taint['effect']}"
        for taint in taints
        if not any(_tolerates(toleration, taint) for toleration in tolerations)
    ]


def _tolerates(toleration: Toleration, taint: dict[str, Any]) -> bool:
    is_value = toleration.operator == "Exists" or (toleration.value or "") == taint.get("value", "")
    return is_value and (toleration.key, toleration.effect) == (taint["key"], taint["effect"])


def _too_small(node: dict[str, Any], needed: dict[str, str]) -> list[str]:
    """Resources that a node has less of than a pod asks for."""
    there = node.get("status", {}).get("allocatable") or {}
    return [name for name, text in needed.items() if amount(str(there.get(name, "0"))) < amount(text)]


def _small(name: str, needed: dict[str, str], nodes: list[dict[str, Any]]) -> str:
    """The node that lacks least, and what it lacks."""
    node = min(nodes, key=lambda each: len(_too_small(each, needed)))
    there, lacking = node["status"].get("allocatable") or {}, _too_small(node, needed)
    parts = ", ".join(f"{there.get(each, 'no')} of {needed[each]} {each}" for each in lacking)
    remedy = f"lower {name}.cpus or {name}.memory_gib to what nodes have allocatable"
    if any("/" in each for each in lacking):
        remedy = "see whether the device plugin runs there (kubectl describe node), or correct the profile"
    return f"no node can hold a pod; {node['metadata']['name']} has {parts}: {remedy}"
