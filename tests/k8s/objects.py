"""Objects as an API server holds them, as small as they may be."""

from __future__ import annotations

import time
from typing import Any

from zerofleet.k8s.observer import Observed

NOW = 1_800_000_000.0


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def ray_job(
    status: dict[str, Any] | None = None, age_s: float = 10, labels: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    metadata = {
        "name": "first",
        "namespace": "training",
        "uid": "u1",
        "creationTimestamp": stamp(NOW - age_s),
        "labels": labels or {},
    }
    return {"metadata": metadata, "spec": spec, "status": status or {}}


def running(status: str = "Initializing") -> dict[str, Any]:
    return {"jobDeploymentStatus": status, "rayClusterName": "first-abcde"}


def pod(
    name: str = "first-abcde-workers-0",
    component: str = "worker",
    phase: str = "Pending",
    unschedulable: str = "",
    waiting: dict[str, Any] | None = None,
    gpus: int = 0,
    claim: str = "",
    node: str = "",
    age_s: float = 5,
) -> dict[str, Any]:
    requests = {"cpu": "4", "memory": "16Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    spec: dict[str, Any] = {"containers": [{"name": "ray-worker", "resources": {"requests": requests}}]}
    if claim:
        spec["volumes"] = [{"name": "storage", "persistentVolumeClaim": {"claimName": claim}}]
    if node:
        spec["nodeName"] = node
    status: dict[str, Any] = {"phase": phase}
    if unschedulable:
        status["conditions"] = [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable}
        ]
    if waiting:
        status["containerStatuses"] = [
            {"name": "ray-worker", "image": "registry/image:1", "state": {"waiting": waiting}}
        ]
    labels = {"app.kubernetes.io/component": component, "app.kubernetes.io/instance": "first"}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels, "creationTimestamp": stamp(NOW - age_s)},
        "spec": spec,
        "status": status,
    }


def event(
    message: str, about: str = "first", kind: str = "RayJob", reason: str = "Failed", age_s: float = 1
) -> dict[str, Any]:
    involved = {"kind": kind, "name": about}
    return {
        "metadata": {"name": f"{about}.1"},
        "involvedObject": involved,
        "reason": reason,
        "message": message,
        "lastTimestamp": stamp(NOW - age_s),
    }


def workload(*conditions: dict[str, Any], **spec: Any) -> dict[str, Any]:
    owner = [{"uid": "u1"}]
    metadata = {"name": "rayjob-first-1", "ownerReferences": owner, "creationTimestamp": stamp(NOW - 5)}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": list(conditions)}}


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def observed(job: dict[str, Any] | None, **objects: Any) -> Observed:
    """`pods=[...]` and so on; all else is empty."""
    empty: dict[str, Any] = dict.fromkeys(("pods", "events", "workloads", "pod_groups", "claims"), ())
    return Observed(job=job, now=NOW, **empty | {name: tuple(found) for name, found in objects.items()})
