"""The port that a Prometheus scrapes, and the labels by which its operator finds what to do."""

from __future__ import annotations

from collections.abc import Iterator

from zerofleet.cluster.config import Finding
from zerofleet.k8s.names import HEAD_PORTS
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.rules.naming import error, warning
from zerofleet.k8s.workload import Workload


def monitoring(profile: Profile, workload: Workload) -> Iterator[Finding]:
    port, taken = profile.monitoring.port, {number: name for name, number in HEAD_PORTS.items()}
    if port in taken:
        yield error(
            "monitoring.port",
            f"{port} is the head's port {taken[port]}, so that the driver could not listen at it: choose another, such as 8090",
        )
    if 0 < port < 1024 and profile.security.run_as_user != 0:
        yield error(
            "monitoring.port",
            f"{port} is below 1024, where only root may listen, and the pods do not run as root: choose another, such as 8090",
        )
    if port and not profile.monitoring.monitor_labels:
        yield warning(
            "monitoring.monitor_labels",
            "there are none: most Prometheus operators take up only PodMonitors and rules with the labels of their own selector, "
            "such as release: prometheus",
        )
