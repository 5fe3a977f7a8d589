"""The frame of every document of the platform."""

from __future__ import annotations

from typing import Any

from zerofleet.k8s.profile import Profile

Document = dict[str, Any]

POD_LABELS = {"app.kubernetes.io/managed-by": "zerofleet"}
"""What every pod of every run has (k8s/names.py)."""


def platform_object(
    profile: Profile, api_version: str, kind: str, name: str, *, in_namespace: bool = True, **content: Any
) -> Document:
    """`content`: everything besides metadata. No label names a run: what belongs to one has `app.kubernetes.io/instance`."""
    labels = {
        "app.kubernetes.io/name": "zerofleet",
        "app.kubernetes.io/component": "platform",
        "app.kubernetes.io/part-of": "zerofleet",
        "app.kubernetes.io/managed-by": "zerofleet",
        **dict(sorted(profile.labels.items())),
    }
    metadata = {"name": name, **({"namespace": profile.namespace} if in_namespace else {}), "labels": labels}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}
