"""All documents of the platform, by what they are for. Pure, and the same for the same profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zerofleet.k8s.bootstrap.access import access
from zerofleet.k8s.bootstrap.namespace import namespace
from zerofleet.k8s.bootstrap.network import network
from zerofleet.k8s.bootstrap.platform_object import Document
from zerofleet.k8s.bootstrap.queues import queues
from zerofleet.k8s.bootstrap.storage import storage
from zerofleet.k8s.monitoring.documents import monitoring_documents
from zerofleet.k8s.profile import Profile


def monitoring(profile: Profile) -> Iterator[Document]:
    """Prometheus's way in, however it is told what to scrape. Without its operator the kinds of the rest are unknown, and applying them would fail."""
    way_in, *of_operator = monitoring_documents(profile)
    yield way_in
    if profile.monitoring.prometheus_operator:
        yield from of_operator


CONCERNS: tuple[Callable[[Profile], Iterator[Document]], ...] = (
    namespace,
    access,
    network,
    storage,
    queues,
    monitoring,
)
"""In the order in which they are applied: the namespace first, since most of the others lie in it."""


def bootstrap(profile: Profile) -> list[Document]:
    """What must exist before the first run. The profile has passed `lint_platform`."""
    return [document for concern in CONCERNS for document in concern(profile)]


def summary(profile: Profile) -> list[str]:
    """What stays to be done by hand, for whoever reviews the documents."""
    security, storage_config = profile.security, profile.storage
    secrets = sorted(
        {
            *profile.images.pull_secrets,
            *(entry.secret for entry in profile.secret_env),
            *(name for name in (storage_config.secret, security.auth_secret) if name),
        }
    )
    lines = [f"what runs need in namespace {profile.namespace}; apply it with: kubectl apply --server-side -f FILE"]
    if secrets:
        lines.append(f"not here, since nothing secret is rendered: the Secrets {', '.join(secrets)}")
    if storage_config.claim and not storage_config.size_gib:
        lines.append(
            f"not here: the PersistentVolumeClaim {storage_config.claim} (storage.size_gib would have it made here)"
        )
    if not security.submitter_groups:
        lines.append(
            "nobody may submit yet: name groups in security.submitter_groups, or bind the Role zerofleet-submitter to somebody"
        )
    if storage_config.workload_identity:
        lines.append(
            f"the ServiceAccount {security.service_account or 'default'} gets its cloud identity by an annotation, which applying this leaves alone"
        )
    return lines
