"""The namespace of all runs."""

from __future__ import annotations

from collections.abc import Iterator

from zerofleet.k8s.bootstrap.platform_object import Document, platform_object
from zerofleet.k8s.profile import Profile

ENFORCE = "pod-security.kubernetes.io/enforce"
"""Label that pod security's admission reads."""


def namespace(profile: Profile) -> Iterator[Document]:
    """It admits the profile's pods, and nothing with more rights: lint holds `security.pod_security` against what the fabric needs."""
    document = platform_object(profile, "v1", "Namespace", profile.namespace, in_namespace=False)
    level = profile.security.pod_security
    document["metadata"]["labels"] |= {ENFORCE: level, "pod-security.kubernetes.io/warn": level}
    yield document
