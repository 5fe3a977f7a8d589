"""Why a run does not run yet, in one sentence with the remedy. Pure: what the API server holds in, a reason out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from zerofleet.k8s.names import SUBMITTER
from zerofleet.k8s.observer import Observed, component
from zerofleet.k8s.reasons.containers import container_reasons, has_waiting
from zerofleet.k8s.reasons.queue import queue_reasons
from zerofleet.k8s.reasons.reason import ORDER, Reason
from zerofleet.k8s.reasons.refusals import refusal_reason
from zerofleet.k8s.reasons.scheduling import scheduling_reason

OPERATOR_SILENCE_S = 30.0
"""KubeRay's operator looks at a new RayJob within a second."""
_STALE_EVENTS = frozenset(("ErrWorkloadCompose",))
"""Kueue says it once while the RayJob is new, and never takes it back."""


def why_pending(observed: Observed) -> Reason | None:
    """The reason that stands most in the way; none when the job has been handed over, or nobody knows of one."""
    if observed.job is None or (observed.has_begun and not _missing_pods(observed)):
        return None
    found = [*_reasons(observed)]
    return min(found, key=lambda reason: ORDER.index(reason.kind), default=None)


def _reasons(observed: Observed) -> Iterator[Reason]:
    assert observed.job is not None
    yield from queue_reasons(observed.job, observed.own_workloads(), _pod_groups(observed))
    for pod in observed.pods:
        if _phase(pod) == "Pending" and (reason := scheduling_reason(pod, observed.claims)):
            yield reason
        if _is_missing(pod):
            yield from container_reasons(pod, _about(observed, pod))
    for event in _newest_first(_of_run(observed)):
        if reason := refusal_reason(event):
            yield reason
            break  # the newest: those before may be over
    yield from _waiting(observed)


def _waiting(observed: Observed) -> Iterator[Reason]:
    """What there is to say when nothing is in the way."""
    assert observed.job is not None
    status, age_s = observed.status, observed.now - _seconds(observed.job["metadata"].get("creationTimestamp", ""))
    if not status.deployment:
        if age_s >= OPERATOR_SILENCE_S and not status.is_suspended:
            yield Reason(
                "no operator",
                f"KubeRay's operator has not looked at the RayJob for {age_s:.0f} s: see whether it runs, and whether it watches namespace "
                f"{observed.job['metadata']['namespace']} (kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator)",
            )
        return
    if status.deployment == "Retrying":
        yield Reason(
            "starting",
            f"the job failed and is started again ({status.failed} of {status.retries + 1} tries): {status.words}",
        )
    elif pods := [pod for pod in observed.pods if component(pod) != SUBMITTER]:
        ready = sum(_is_ready(pod) for pod in pods)
        if ready < len(pods):
            yield Reason("starting", f"{ready} of {len(pods)} pods run; the others are being started")
        elif not observed.has_begun:
            yield Reason("starting", f"{ready} of {len(pods)} pods run; the job is being handed to Ray")


def _missing_pods(observed: Observed) -> bool:
    """Whether the driver runs but a pod has not come up: then the run waits for a worker, or nobody can read its log for want of a submitter."""
    pods = [pod for pod in observed.pods if component(pod)]
    return any(_is_missing(pod) for pod in pods)


def _is_missing(pod: dict[str, Any]) -> bool:
    """Whether it has not come up, or is down: KubeRay's pods are started again, and their phase is Running while they wait for that."""
    return _phase(pod) == "Pending" or (_phase(pod) == "Running" and has_waiting(pod))


def _is_ready(pod: dict[str, Any]) -> bool:
    containers = pod.get("status", {}).get("containerStatuses") or []
    return _phase(pod) == "Running" and all(container.get("ready") for container in containers)


def _phase(pod: dict[str, Any]) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _pod_groups(observed: Observed) -> list[dict[str, Any]]:
    """Volcano's, which KubeRay names after RayJob or RayCluster."""
    assert observed.job is not None
    names = {f"ray-{name}-pg" for name in (observed.job["metadata"]["name"], observed.status.cluster) if name}
    return [group for group in observed.pod_groups if group["metadata"]["name"] in names]


def _of_run(observed: Observed) -> Iterator[dict[str, Any]]:
    """Warnings about the run's objects since it was created, but those that are known to be stale."""
    assert observed.job is not None
    metadata, cluster = observed.job["metadata"], observed.status.cluster
    names = {metadata["name"], cluster, *(pod["metadata"]["name"] for pod in observed.pods)}
    names |= {group["metadata"]["name"] for group in _pod_groups(observed)}
    names |= {each["metadata"]["name"] for each in observed.own_workloads()}
    created = _seconds(metadata.get("creationTimestamp", ""))
    for event in observed.events:
        about = str(event.get("involvedObject", {}).get("name", ""))
        is_ours = about in names or bool(cluster and about.startswith(f"{cluster}-"))
        if is_ours and event.get("reason") not in _STALE_EVENTS and event_seconds(event) >= created:
            yield event


def _about(observed: Observed, pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Warnings about one pod, the newest first."""
    name = pod["metadata"]["name"]
    return _newest_first(event for event in _of_run(observed) if event["involvedObject"].get("name") == name)


def _newest_first(events: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(events, key=event_seconds, reverse=True)


def event_seconds(event: dict[str, Any]) -> float:
    """When it was seen last (Unix seconds)."""
    series = event.get("series") or {}
    metadata = event.get("metadata") or {}
    said = [
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        metadata.get("creationTimestamp"),
    ]
    return next((_seconds(time) for time in said if time), 0.0)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
