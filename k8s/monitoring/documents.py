"""Objects for the Prometheus operator and for Grafana's sidecar: one of each for a namespace, whatever runs in it. Pure."""

from __future__ import annotations

from typing import Any

from zerofleet.k8s.monitoring.alerts import rule_groups
from zerofleet.k8s.monitoring.dashboard import dashboard_json
from zerofleet.k8s.names import AUTOSCALER_METRICS, DASHBOARD_METRICS, RAY_METRICS, TRAIN_METRICS
from zerofleet.k8s.profile import Profile

NAME = "zerofleet"
DASHBOARD_FILE = "zerofleet-runs.json"
_OPERATOR = "monitoring.coreos.com/v1"


def monitoring_documents(profile: Profile) -> list[dict[str, Any]]:
    """For whoever sets up a namespace. The cluster needs the Prometheus operator's CRDs."""
    return [pod_monitor(profile), prometheus_rule(profile), dashboard_config_map(profile)]


def pod_monitor(profile: Profile) -> dict[str, Any]:
    """The pods of all runs: the driver's metrics and Ray's own. A port that a pod has not is no target."""
    ports = [RAY_METRICS, AUTOSCALER_METRICS, DASHBOARD_METRICS]
    if profile.monitoring.port:
        ports.insert(0, TRAIN_METRICS)
    interval = f"{profile.monitoring.scrape_interval_s}s"
    spec = {
        "selector": {"matchLabels": {"app.kubernetes.io/part-of": "zerofleet"}},
        "podTargetLabels": ["app.kubernetes.io/instance", "app.kubernetes.io/component"],
        "podMetricsEndpoints": [{"port": port, "path": "/metrics", "interval": interval} for port in ports],
    }
    return {
        "apiVersion": _OPERATOR,
        "kind": "PodMonitor",
        "metadata": _metadata(profile, profile.monitoring.monitor_labels),
        "spec": spec,
    }


def prometheus_rule(profile: Profile) -> dict[str, Any]:
    """The alerts."""
    return {
        "apiVersion": _OPERATOR,
        "kind": "PrometheusRule",
        "metadata": _metadata(profile, profile.monitoring.monitor_labels),
        "spec": rule_groups(profile.monitoring, profile.lifecycle),
    }


def dashboard_config_map(profile: Profile) -> dict[str, Any]:
    """The dashboard, where Grafana's sidecar looks for some."""
    metadata = _metadata(profile, profile.monitoring.dashboard_labels)
    metadata["name"] = f"{NAME}-dashboard"
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {DASHBOARD_FILE: dashboard_json()}}


def _metadata(profile: Profile, labels: dict[str, str]) -> dict[str, Any]:
    own = {
        "app.kubernetes.io/name": "zerofleet",
        "app.kubernetes.io/part-of": "zerofleet",
        "app.kubernetes.io/managed-by": "zerofleet",
    }
    every = {**own, **dict(sorted({**profile.labels, **labels}.items()))}
    return {"name": NAME, "namespace": profile.namespace, "labels": every}
