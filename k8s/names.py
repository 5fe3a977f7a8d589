"""Names, labels and annotations of what is rendered, and what KubeRay derives from them."""

from __future__ import annotations

import re

from zerofleet.k8s.profile import Profile
from zerofleet.k8s.workload import Workload

MAX_NAME = 47
"""KubeRay refuses a RayJob with a longer name: the cluster's gets 6 characters more, and a service's of the cluster 10 again."""
WORKER_GROUP = "workers"
"""Kueue takes a pod set per group and keeps `head` for itself."""
HEAD, WORKER, SUBMITTER = "head", "worker", "submitter"
JOB_FILE = "job.yaml"
OVERRIDES_FILE = "overrides.yaml"
"""Of a resume: a list of `key=value`."""
STOP_FILE = "stop"
"""In the ConfigMap once the run was asked to stop: the kubelet brings it to the head."""

RAY_METRICS, AUTOSCALER_METRICS, DASHBOARD_METRICS = "metrics", "as-metrics", "dash-metrics"
"""Names of Ray's own ports for a Prometheus, as KubeRay's samples have them."""
TRAIN_METRICS = "train-metrics"
"""The driver's."""
HEAD_PORTS = {
    "gcs-server": 6379,
    "dashboard": 8265,
    "client": 10001,
    RAY_METRICS: 8080,
    AUTOSCALER_METRICS: 44217,
    DASHBOARD_METRICS: 44227,
}
"""Of Ray, on the head."""

_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def config_map_name(name: str) -> str:
    return f"{name}-job"


def tag_of(image: str) -> str:
    """The tag of an image's reference; empty when it has none."""
    reference = image.partition("@")[0].rpartition("/")[2]
    return reference.partition(":")[2]


def labels(profile: Profile, workload: Workload, component: str = "") -> dict[str, str]:
    """For every object, and with a component for pods. Pods keep the name `kuberay`: KubeRay's services select the head by it."""
    tag = tag_of(profile.images.image)
    found = {
        "app.kubernetes.io/name": "" if component else "zerofleet",
        "app.kubernetes.io/instance": workload.name or "",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "zerofleet",
        "app.kubernetes.io/managed-by": "zerofleet",
        "app.kubernetes.io/version": tag if _LABEL.fullmatch(tag) else "",
        **dict(sorted(profile.labels.items())),
    }
    return {key: value for key, value in found.items() if value}


def pod_selector(workload: Workload, component: str) -> dict[str, str]:
    """Labels that tell the run's pods of one component."""
    return {"app.kubernetes.io/component": component, "app.kubernetes.io/instance": workload.name or ""}


def run_selector(name: str) -> str:
    """Selects everything that was made for a run, and its pods."""
    return f"app.kubernetes.io/managed-by=zerofleet,app.kubernetes.io/instance={name}"


def head_selector(name: str) -> str:
    return f"app.kubernetes.io/component={HEAD},app.kubernetes.io/instance={name}"


def queue_labels(profile: Profile) -> dict[str, str]:
    """Labels of the RayJob that a queue reads. The controllers make Workload, PodGroup and schedulerName themselves."""
    queue = profile.queue
    if queue.kind == "kueue":
        found = {
            "kueue.x-k8s.io/queue-name": queue.name,
            "kueue.x-k8s.io/priority-class": queue.priority_class,
            "kueue.x-k8s.io/max-exec-time-seconds": str(queue.max_execution_s) if queue.max_execution_s else None,
        }
    elif queue.kind == "volcano":
        topology = queue.topology
        found = {
            "volcano.sh/queue-name": queue.name,
            "ray.io/priority-class-name": queue.priority_class,
            "volcano.sh/network-topology-mode": ("hard" if topology.mode == "required" else "soft")
            if topology
            else None,
            "volcano.sh/network-topology-highest-tier-allowed": topology.level if topology else None,
        }
    else:
        found = {}
    return {key: value for key, value in found.items() if value}


def worker_annotations(profile: Profile) -> dict[str, str]:
    """Of worker pods: topology for Kueue, networks for Multus, and that no autoscaler of nodes moves them."""
    topology, networks = profile.queue.topology, profile.fabric.networks
    found = dict(STAY)
    if topology and profile.queue.kind == "kueue":
        found[f"kueue.x-k8s.io/podset-{topology.mode}-topology"] = topology.level
    if networks:
        found["k8s.v1.cni.cncf.io/networks"] = networks
    return found


STAY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Annotations of pods that autoscalers of nodes leave where they are."""
