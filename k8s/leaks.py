"""What runs have left in a namespace and no live run owns: clusters, pods, and the small objects of a run. Removes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from zerofleet.cluster.config import Check
from zerofleet.k8s.api import Api, ApiError
from zerofleet.k8s.job_status import job_status
from zerofleet.k8s.names import STOP_FILE
from zerofleet.k8s.paths import BUDGET, CLAIM, CONFIG_MAP, POD, RAY_CLUSTER, RAY_JOB, SECRET, Kind
from zerofleet.k8s.quantity import total

_OURS = "app.kubernetes.io/managed-by=zerofleet"
_OF_RUNS = f"{_OURS},app.kubernetes.io/instance"
"""Not of the platform, whose objects (k8s/bootstrap) name no run."""
_RUN = "app.kubernetes.io/instance"
_CLUSTER = "ray.io/cluster"
"""KubeRay's label of pods."""
SETTLE_S = 600.0
"""A submit makes the small objects first, and controllers take their time to delete: what is younger, or has ended later, is left alone."""
_SMALL = (SECRET, BUDGET, CLAIM)
_OVER = ("Succeeded", "Failed")

Objects = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Found:
    """What carries our labels in a namespace. Plain objects of the API; of `small` metadata only."""

    jobs: Objects
    clusters: Objects
    pods: Objects
    small: tuple[tuple[Kind, dict[str, Any]], ...]
    unseen: tuple[str, ...]
    """Kinds that may not be listed."""
    asked_to_stop: frozenset[str] = frozenset()
    """Names of runs, by their ConfigMaps."""


def collect(api: Api, namespace: str) -> Found:
    """Raises ApiError when RayJobs or pods cannot be listed: without them nothing tells what lives."""
    unseen: list[str] = []

    def listed(kind: Kind, selector: str, *, content: bool = True) -> Objects:
        try:
            get = api.get if content else api.list_metadata
            return tuple(get(kind.path(namespace), {"labelSelector": selector} if selector else {})["items"] or ())
        except ApiError as error:
            if error.status not in (403, 404) or kind in (RAY_JOB, POD):
                raise
            if error.status == 403:
                unseen.append(kind.plural)
            return ()  # 404: this cluster has no such kind, and so none of them

    maps = listed(CONFIG_MAP, _OF_RUNS)  # no secret: the driver's orders are in its content
    others = [(kind, each) for kind in _SMALL for each in listed(kind, _OF_RUNS, content=False)]
    small = tuple([(CONFIG_MAP, {"metadata": each["metadata"]}) for each in maps] + others)
    stopped = frozenset(_label(each, _RUN) for each in maps if STOP_FILE in (each.get("data") or {}))
    clusters = tuple(each for each in listed(RAY_CLUSTER, "") if _is_ours(each))
    return Found(listed(RAY_JOB, _OURS), clusters, listed(POD, _OURS), small, tuple(unseen), stopped)


def _is_ours(cluster: dict[str, Any]) -> bool:
    """By the labels of its head's pods, which no version of KubeRay changes."""
    template = cluster.get("spec", {}).get("headGroupSpec", {}).get("template", {})
    return (template.get("metadata", {}).get("labels") or {}).get("app.kubernetes.io/managed-by") == "zerofleet"


def leaks(found: Found, namespace: str, context: str | None, now: float) -> Iterator[Check]:
    """A line for each: what it is, what it costs, and the command that removes it. Pure; `now` in Unix seconds."""
    view = _View(found, namespace, context, now)
    yield from view.clusters()
    yield from view.stray_pods()
    yield from view.jobs()
    yield from view.small()
    if found.unseen:
        yield Check("warn", "leaks", f"you may not list {', '.join(found.unseen)}: those were not looked at")


class _View:
    """One look at a namespace."""

    def __init__(self, found: Found, namespace: str, context: str | None, now: float) -> None:
        self._found, self._now = found, now
        place = f"--context {context} " if context else ""
        self._kubectl = f"kubectl {place}-n {namespace} delete"
        self._jobs = {job["metadata"]["name"]: job for job in found.jobs}
        self._clusters = {cluster["metadata"]["name"]: cluster for cluster in found.clusters}
        self._stop = f"zerofleet stop {{}} --backend kuberay {place}--namespace {namespace}"

    def clusters(self) -> Iterator[Check]:
        for name, cluster in self._clusters.items():
            owner = next(
                (each["name"] for each in cluster["metadata"].get("ownerReferences") or [] if each["kind"] == "RayJob"),
                "",
            )
            job = self._jobs.get(owner)
            cost = _cost([pod for pod in self._found.pods if _label(pod, _CLUSTER) == name])
            if job is None and self._is_old(cluster):
                owned = f"whose RayJob {owner} is gone" if owner else "that belongs to no RayJob"
                yield Check("warn", "cluster", f"RayCluster {name}, {owned}: {cost}. {self._kubectl} raycluster {name}")
            elif job is not None and (ended_s := self._overdue_s(job)) is not None:
                command = self._stop.format(owner)
                yield Check(
                    "warn",
                    "cluster",
                    f"RayCluster {name} of run {owner}, which ended {_ago(ended_s)}: {cost}. {command}",
                )

    def stray_pods(self) -> Iterator[Check]:
        """Pods whose cluster is gone; those of a cluster are told with it."""
        stray: dict[str, list[dict[str, Any]]] = {}
        for pod in self._found.pods:
            run = _label(pod, _RUN)
            if self._is_old(pod) and _label(pod, _CLUSTER) not in self._clusters and run not in self._jobs:
                stray.setdefault(run, []).append(pod)
        for run, pods in stray.items():
            names = " ".join(pod["metadata"]["name"] for pod in pods)
            yield Check(
                "warn",
                "pods",
                f"of run {run or 'without a name'}, whose RayJob is gone: {_cost(pods)}. {self._kubectl} pod {names}",
            )

    def jobs(self) -> Iterator[Check]:
        """Of runs that have finished: those that failed or were stopped, `resume` reads. The driver of a run that was stopped ends with 0, so that
        KubeRay takes it for one that finished: its ConfigMap tells."""
        if CONFIG_MAP.plural in self._found.unseen:
            return
        for name, job in self._jobs.items():
            if name in self._found.asked_to_stop:
                continue
            ended_s = self._overdue_s(job)
            if ended_s is not None and job_status(job).job == "SUCCEEDED":
                yield Check(
                    "warn",
                    "job",
                    f"RayJob {name}, which finished {_ago(ended_s)} and nobody followed to its end: no pods of its own. {self._kubectl} rayjob {name}",
                )

    def small(self) -> Iterator[Check]:
        for kind, each in self._found.small:
            name, run = each["metadata"]["name"], _label(each, _RUN)
            if run in self._jobs or not self._is_old(each) or each["metadata"].get("deletionTimestamp"):
                continue
            costs = {
                "PersistentVolumeClaim": "a volume with whatever the run wrote to it",
                "Secret": "credentials that nobody uses",
            }
            cost = costs.get(kind.name, "an object without pods")
            yield Check(
                "warn",
                kind.name.lower(),
                f"{kind.name} {name} of run {run}, whose RayJob is gone: {cost}. {self._kubectl} {kind.name.lower()} {name}",
            )

    def _is_old(self, thing: dict[str, Any]) -> bool:
        return self._now - _seconds(thing["metadata"].get("creationTimestamp", "")) > SETTLE_S

    def _overdue_s(self, job: dict[str, Any]) -> float | None:
        """Seconds since a run ended whose pods should be gone by now; none while they may be there."""
        if not job_status(job).is_over(0.0):
            return None
        spec, ended = job.get("spec") or {}, _seconds((job.get("status") or {}).get("endTime") or "")
        ttl_s = float(spec.get("ttlSecondsAfterFinished") or 0)
        since = ended or _seconds(job["metadata"].get("creationTimestamp", ""))
        return self._now - since if self._now - since > ttl_s + SETTLE_S else None


def _label(thing: dict[str, Any], name: str) -> str:
    return str((thing["metadata"].get("labels") or {}).get(name, ""))


def _cost(pods: Iterable[dict[str, Any]]) -> str:
    """What pods hold that have not ended."""
    held = [pod for pod in pods if pod.get("status", {}).get("phase") not in _OVER]
    if not held:
        return "no pod that runs"
    requests = [c.get("resources", {}).get("requests") or {} for pod in held for c in pod["spec"]["containers"]]
    amounts = ", ".join(f"{value} {name}" for name, value in total(requests).items())
    return f"{len(held)} pods, which hold {amounts or 'nothing'}"


def _ago(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.1f} days ago" if hours >= 48 else f"{hours:.1f} hours ago"


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def look(api: Api, namespace: str, context: str | None) -> Iterator[Check]:
    """Raises ApiError."""
    yield from leaks(collect(api, namespace), namespace, context, time.time())
