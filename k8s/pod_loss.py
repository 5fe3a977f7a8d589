"""What Kubernetes did to a pod that a run has lost, or is about to lose. Pure: the pod as the API server holds it in, one sentence out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Cause = Literal[
    "evicted", "drained", "preempted", "tainted", "shut down", "node gone", "OOM-killed", "deleted", "ended"
]

_DISRUPTIONS: dict[str, tuple[Cause, str]] = {
    "EvictionByEvictionAPI": (
        "drained",
        "was evicted by the API: somebody drains the node (kubectl drain, an autoscaler of nodes)",
    ),
    "PreemptionByScheduler": ("preempted", "was preempted: a pod of higher priority took its place"),
    "DeletionByTaintManager": (
        "tainted",
        "was deleted: its node got a taint that it does not tolerate, as one that is not ready does",
    ),
    "DeletionByPodGC": ("node gone", "was deleted: its node is gone"),
}
"""By the reason of the condition DisruptionTarget, which Kubernetes sets since 1.26."""
_SHUTDOWNS = frozenset(("Terminated", "Shutdown", "NodeShutdown"))
"""Reasons of a pod that its kubelet has ended since the node shuts down; the name changed with the version."""
_SIGKILL_CODE = 137


@dataclass(frozen=True)
class PodLoss:
    """`node` is Kubernetes' name of it; `sentence` says what happened and, where something can be done about it, what."""

    pod: str
    node: str
    cause: Cause
    sentence: str


def loss_of(pod: Mapping[str, Any]) -> PodLoss | None:
    """None for a pod that nothing has happened to. An end with a cause comes before one without: a pod that is drained is deleted, too, and its
    container ends with some exit code."""
    found = next(_causes(pod), None)
    return _loss(pod, *found) if found else None


def vanished(pod: Mapping[str, Any]) -> PodLoss:
    """Of a pod that is not there any more, and had nothing to say for itself when it was seen last."""
    return loss_of(pod) or _loss(pod, "deleted", "is gone: it was deleted without a grace period")


def _loss(pod: Mapping[str, Any], cause: Cause, what: str) -> PodLoss:
    name, node = str(pod["metadata"]["name"]), str(pod["spec"].get("nodeName", ""))
    return PodLoss(name, node, cause, f"pod {name} on node {node or '(none)'} {what}")


def _causes(pod: Mapping[str, Any]) -> Iterator[tuple[Cause, str]]:
    status = pod.get("status", {})
    reason, message = status.get("reason", ""), " ".join(str(status.get("message", "")).split())
    if reason == "Evicted":
        remedy = "Ask for what the pods use (workers.memory_gib, workers.ephemeral_storage_gib), or look at what else runs there"
        yield (
            "evicted",
            f"was evicted by its kubelet: {message.rstrip('.') or 'the node is short of something'}. {remedy}",
        )
    if reason in _SHUTDOWNS:
        yield "shut down", f"was ended by its kubelet: {message.rstrip('.') or 'the node shuts down'}"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            if known := _DISRUPTIONS.get(condition.get("reason", "")):
                yield known
            else:
                yield "deleted", f"is ended by Kubernetes: {condition.get('message') or condition.get('reason')}"
    ended = [*_ended(status)]
    for each in ended:
        if each.get("reason") == "OOMKilled":
            remedy = "Raise workers.memory_gib, or lower train.micro_batch_size"
            yield (
                "OOM-killed",
                f"was OOM-killed (exit code {each.get('exitCode', _SIGKILL_CODE)}): it used more memory than its limit. {remedy}",
            )
    if pod["metadata"].get("deletionTimestamp"):
        yield "deleted", "was deleted: by somebody, a drain or an autoscaler; this API server does not say which"
    for each in ended:
        yield "ended", f"ended with exit code {each.get('exitCode', '?')} ({each.get('reason') or 'no reason given'})"


def _ended(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """How containers ended: those that have, and those that their kubelet started again."""
    for container in status.get("containerStatuses") or []:
        for state in ("state", "lastState"):
            if terminated := (container.get(state) or {}).get("terminated"):
                yield terminated


def restarts(pod: Mapping[str, Any]) -> int:
    """How often containers of the pod were started again."""
    return sum(container.get("restartCount", 0) for container in pod.get("status", {}).get("containerStatuses") or [])
