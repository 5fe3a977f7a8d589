"""Why a pod that has a node does not start: its image, what it mounts, what it is configured with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from zerofleet.k8s.reasons.reason import Reason

_IMAGE = frozenset(
    (
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "ImageInspectError",
    )
)
_CONFIG = frozenset(("CreateContainerConfigError", "CreateContainerError", "RunContainerError"))
_MOUNT = frozenset(("FailedMount", "FailedAttachVolume", "FailedMapVolume"))
_NOT_THERE = re.compile(r'(secret|configmap|persistentvolumeclaim) "([^"]+)" not found', re.IGNORECASE)


def container_reasons(pod: dict[str, Any], events: list[dict[str, Any]]) -> Iterator[Reason]:
    """`events`: warnings about this pod, the newest first."""
    status, name = pod.get("status", {}), pod["metadata"]["name"]
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        message = _short(waiting.get("message") or "")
        if waiting.get("reason") in _IMAGE:
            yield Reason(
                "image pull error",
                f"pod {name} cannot pull the image {container.get('image', '')} ({waiting['reason']}{_said(message)}): correct images.image in the "
                "profile, or give it the registry's secret (images.pull_secrets)",
            )
        elif waiting.get("reason") in _CONFIG:
            yield _configuration(name, waiting["reason"], message)
        elif waiting.get("reason") == "CrashLoopBackOff":
            ended = (container.get("lastState") or {}).get("terminated") or {}
            yield Reason(
                "container fails",
                f"container {container['name']} of pod {name} ends with exit code {ended.get('exitCode', '?')} again and again "
                f"({container.get('restartCount', 0)} restarts): see kubectl logs --previous {name} -c {container['name']}",
            )
    if pod["spec"].get("nodeName") and not _was_started(status):
        for event in events:
            if event.get("reason") in _MOUNT:
                yield _mount(name, _short(event.get("message") or ""))
                break


def has_waiting(pod: dict[str, Any]) -> bool:
    """Whether a container of the pod waits to be started, for the first time or again: then the pod's phase may be Running all the same."""
    containers = pod.get("status", {}).get("containerStatuses") or []
    return any("waiting" in (container.get("state") or {}) for container in containers)


def _was_started(status: dict[str, Any]) -> bool:
    containers = status.get("containerStatuses") or []
    states = [container.get("state") or {} for container in containers]
    return any("running" in state or "terminated" in state for state in states) or any(
        container.get("restartCount") for container in containers
    )


def _configuration(pod: str, reason: str, message: str) -> Reason:
    if missing := _NOT_THERE.search(message):
        kind, name = missing[1].lower(), missing[2]
        return Reason(
            "missing object",
            f"pod {pod} needs the {kind} {name!r}, which is not there: create it in this namespace, or correct its name in the profile",
        )
    return Reason(
        "missing object", f"pod {pod} cannot be started ({reason}{_said(message)}): correct what the profile names"
    )


def _mount(pod: str, message: str) -> Reason:
    if missing := _NOT_THERE.search(message):
        kind, name = missing[1].lower(), missing[2]
        return Reason(
            "missing object", f"pod {pod} mounts the {kind} {name!r}, which is not there: create it in this namespace"
        )
    return Reason(
        "volume not mounted",
        f"a volume of pod {pod} cannot be mounted{_said(message)}: see whether its storage answers, and whether another node holds it (the claim has "
        "to be ReadWriteMany)",
    )


def _said(message: str) -> str:
    return f": {message}" if message else ""


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= 300 else f"{text[:297]}..."
