"""Objects for the Prometheus operator and for Grafana's sidecar: one of each for a namespace, whatever runs in it. Pure."""

from __future__ import annotations

from typing import Any

from zerofleet.k8s.monitoring.alerts import rule_groups
from zerofleet.k8s.monitoring.dashboard import dashboard_json
from zerofleet.k8s.names import AUTOSCALER_METRICS, DASHBOARD_METRICS, HEAD_PORTS, RAY_METRICS, TRAIN_METRICS
from zerofleet.k8s.profile import Profile

NAME = "zerofleet"
DASHBOARD_FILE = "zerofleet-runs.json"
_OPERATOR = "monitoring.coreos.com/v1"
_RUNS = {"app.kubernetes.io/part-of": "zerofleet"}
"""Labels of every pod of every run."""
_OF_RAY = (RAY_METRICS, AUTOSCALER_METRICS, DASHBOARD_METRICS)


def monitoring_documents(profile: Profile) -> list[dict[str, Any]]:
    """For whoever sets up a namespace. The cluster needs the Prometheus operator's CRDs."""
    return [network_policy(profile), pod_monitor(profile), prometheus_rule(profile), dashboard_config_map(profile)]


def network_policy(profile: Profile) -> dict[str, Any]:
    """Prometheus may scrape where otherwise nobody outside of the namespace may ask anything."""
    own = [profile.monitoring.port] if profile.monitoring.port else []
    ports = [*own, *(HEAD_PORTS[name] for name in _OF_RAY)]
    source = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": profile.monitoring.prometheus_namespace}}
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {**_metadata(profile, {}), "name": f"{NAME}-metrics"},
        "spec": {
            "podSelector": {"matchLabels": dict(_RUNS)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [source], "ports": [{"protocol": "TCP", "port": port} for port in ports]}],
        },
    }


def pod_monitor(profile: Profile) -> dict[str, Any]:
    """The pods of all runs: the driver's metrics and Ray's own. A port that a pod has not is no target."""
    ports = [*([TRAIN_METRICS] if profile.monitoring.port else []), *_OF_RAY]
    interval = f"{profile.monitoring.scrape_interval_s}s"
    spec = {
        "selector": {"matchLabels": dict(_RUNS)},
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
