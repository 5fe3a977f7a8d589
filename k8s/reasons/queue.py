"""Why a queue holds a run back: Kueue's Workload, Volcano's PodGroup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from zerofleet.k8s.reasons.reason import Reason

_KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
_VOLCANO_QUEUE = "volcano.sh/queue-name"
_STOPPED = re.compile(
    r"\b(stopped|inactive|doesn't exist|does not exist|not found|closed|is terminating)\b", re.IGNORECASE
)
_POD_SET = "couldn't assign flavors to pod set"
_WAITS = re.compile(r"insufficient unused quota", re.IGNORECASE)
"""Of a flavor that other jobs hold. Beside it Kueue names the flavors of the queue's other pools, which no worker fits: those are as they should be."""
_NEVER = re.compile(r"(?:maximum capacity|exceeds? (?:the )?maximum)", re.IGNORECASE)
_TAINT = re.compile(r"untolerated taint .*in flavor", re.IGNORECASE)
_NO_MATCH = re.compile(r"flavor \S+ doesn't match (?:node|with node)", re.IGNORECASE)
_NOT_READY = re.compile(r"exceeded the PodsReady timeout", re.IGNORECASE)
_QUOTA = re.compile(r"\b(quota|insufficient|exceed|borrow|preempt|flavor)", re.IGNORECASE)


def queue_reasons(
    job: dict[str, Any], workloads: list[dict[str, Any]], pod_groups: list[dict[str, Any]]
) -> Iterator[Reason]:
    """`workloads` and `pod_groups` are the run's own."""
    labels = job["metadata"].get("labels", {})
    if queue := labels.get(_KUEUE_QUEUE):
        yield from _kueue(queue, job, workloads)
    if queue := labels.get(_VOLCANO_QUEUE):
        for group in pod_groups:
            yield from _volcano(queue, group)


def _kueue(queue: str, job: dict[str, Any], workloads: list[dict[str, Any]]) -> Iterator[Reason]:
    if not workloads:
        if job["spec"].get("suspend") or not (job.get("status") or {}).get("jobDeploymentStatus"):
            yield Reason(
                "queued",
                f"Kueue has made no Workload of the RayJob yet, for queue {queue!r}: see whether it manages ray.io/rayjob",
            )
        return
    workload = max(workloads, key=lambda each: each["metadata"].get("creationTimestamp", ""))
    conditions = {c["type"]: c for c in workload.get("status", {}).get("conditions") or []}
    if _is(conditions, "Admitted", "True") or _is(conditions, "Finished", "True"):
        return
    if workload.get("spec", {}).get("active") is False:
        yield _deactivated(queue, conditions)
        return
    reserved = conditions.get("QuotaReserved") or {}
    message = " ".join(str(reserved.get("message") or "").split())
    evicted = conditions.get("Evicted") or {}
    if _is(conditions, "Evicted", "True") and "Stopped" in str(evicted.get("reason", "")):
        message = message or str(evicted.get("message") or "")
        yield _stopped(queue, message)
    elif not _is(conditions, "QuotaReserved", "True") and "queue" in message.lower() and _STOPPED.search(message):
        yield _stopped(queue, message)  # by its words: the condition's reason has other names under Kueue's gates
    elif _is(conditions, "QuotaReserved", "True"):
        checks = [c["name"] for c in workload["status"].get("admissionChecks") or [] if c.get("state") != "Ready"]
        yield Reason(
            "queued",
            f"queue {queue!r} has reserved the quota and waits for its admission checks ({', '.join(checks) or 'none named'})",
        )
    elif reason := _no_flavor(queue, message) or _not_ready(queue, message):
        yield reason
    elif _QUOTA.search(message):
        again = " (it was preempted)" if evicted.get("reason") == "Preempted" else ""
        yield Reason(
            "no quota",
            f"queue {queue!r} has no quota for the run now{again}: {message}. Wait until other jobs of the queue end, lower cluster.nodes, or ask the "
            "platform team for quota",
        )
    else:
        yield Reason(
            "queued",
            f"the run waits in queue {queue!r}" + (f": {message}" if message else ", which has not looked at it yet"),
        )


def _deactivated(queue: str, conditions: dict[str, dict[str, Any]]) -> Reason:
    why = _why(conditions, "Evicted")
    if "MaximumExecutionTime" in str(conditions.get("Evicted", {}).get("reason", "")):
        sentence = f"the run's time in queue {queue!r} is over{why}: go on with `zerofleet resume`, and raise queue.max_execution_s in the profile"
    else:
        sentence = f"somebody has deactivated the run's Workload in queue {queue!r}{why}: ask them to activate it again"
    return Reason("queue stopped", sentence)


def _no_flavor(queue: str, message: str) -> Reason | None:
    """Of the first pod set that no flavor of the queue will ever fit, however long it waits."""
    for part in message.split(_POD_SET):
        if _WAITS.search(part):
            continue
        if _NEVER.search(part):
            return Reason(
                "no quota",
                f"queue {queue!r} never fits the run, however long it waits: it asks for more than all of the queue's quota: {message}. Lower "
                "cluster.nodes or what a pod asks for in the profile, or ask the platform team for quota",
            )
        if _TAINT.search(part):
            return Reason(
                "untolerated taint",
                f"the nodes of queue {queue!r} have a taint that the pods do not tolerate: {message}. Add it to tolerations in the profile if they "
                "are meant for this job, or ask the platform team to repeat the toleration in the ResourceFlavor",
            )
        if _NO_MATCH.search(part):
            return Reason(
                "no matching node",
                f"no nodes of queue {queue!r} have the labels that the pods select: {message}. Correct node_selector or gpu_product in the profile, or "
                "set another queue.name",
            )
    return None


def _not_ready(queue: str, message: str) -> Reason | None:
    if not _NOT_READY.search(message):
        return None
    return Reason(
        "queued",
        f"queue {queue!r} admitted the run and took the quota back, since its pods were not ready in Kueue's time for it: {message}. It is queued again: "
        "when that repeats, ask the platform team for a longer waitForPodsReady.timeout, or for nodes",
    )


def _stopped(queue: str, message: str) -> Reason:
    return Reason(
        "queue stopped",
        f"queue {queue!r} takes no jobs{f': {message}' if message else ''}. Ask the platform team to start it, or set another queue.name in the profile",
    )


def _volcano(queue: str, group: dict[str, Any]) -> Iterator[Reason]:
    status = group.get("status", {})
    if status.get("phase") in ("Running", "Completed"):
        return
    conditions = [
        c for c in status.get("conditions") or [] if c.get("type") == "Unschedulable" and c.get("status") == "True"
    ]
    message = " ".join(str(conditions[-1].get("message") or "").split()) if conditions else ""
    if _STOPPED.search(message) and "queue" in message.lower():
        yield _stopped(queue, message)
    elif "quota" in message.lower():
        yield Reason(
            "no quota",
            f"queue {queue!r} has no quota for the run now: {message}. Wait until other jobs of the queue end, lower cluster.nodes, or ask the platform "
            "team for quota",
        )
    elif message:
        yield Reason(
            "queued",
            f"Volcano places none of the run's pods before it can place all {group.get('spec', {}).get('minMember', '')}: {message}",
        )
    else:
        yield Reason(
            "queued", f"the run waits in queue {queue!r} of Volcano ({status.get('phase') or 'not looked at yet'})"
        )


def _is(conditions: dict[str, dict[str, Any]], kind: str, status: str) -> bool:
    return conditions.get(kind, {}).get("status") == status


def _why(conditions: dict[str, dict[str, Any]], kind: str) -> str:
    message = conditions.get(kind, {}).get("message")
    return f" ({message})" if message else ""
