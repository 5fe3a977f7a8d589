"""The volume that all pods share, where the profile has it made here."""

from __future__ import annotations

from collections.abc import Iterator

from zerofleet.k8s.bootstrap.platform_object import Document, platform_object
from zerofleet.k8s.profile import Profile


def storage(profile: Profile) -> Iterator[Document]:
    config = profile.storage
    if not (config.claim and config.size_gib):
        return
    spec = {
        "accessModes": [config.access_mode],
        **({"storageClassName": config.storage_class} if config.storage_class else {}),
        "resources": {"requests": {"storage": f"{config.size_gib}Gi"}},
    }
    yield platform_object(profile, "v1", "PersistentVolumeClaim", config.claim, spec=spec)
