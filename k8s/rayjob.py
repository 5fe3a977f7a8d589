"""From a profile and a workload to the documents of a run. Pure, and the same for the same input."""

from __future__ import annotations

from typing import Any

from zerofleet.k8s.containers import container_security, entrypoint
from zerofleet.k8s.names import HEAD, JOB_FILE, SUBMITTER, WORKER, WORKER_GROUP, config_map_name, labels, queue_labels
from zerofleet.k8s.pods import head_pod, submitter_pod, worker_pod
from zerofleet.k8s.profile import DeletionRule, Profile
from zerofleet.k8s.workload import Workload, least_nodes, object_store_bytes

_SUBMIT_RETRIES = 20
"""Of the submitter's pod, which asks first whether the job is there already: submitting it again does nothing. When they are used up,
KubeRay takes the whole cluster down, whatever the run does."""


def documents(profile: Profile, workload: Workload) -> list[dict[str, Any]]:
    """What a run needs, in the order in which it is created. The profile and the workload have passed `lint`."""
    found = [config_map(profile, workload)]
    if profile.limits.disruption_budget:
        found.append(disruption_budget(profile, workload))
    return [*found, ray_job(profile, workload)]


def config_map(profile: Profile, workload: Workload) -> dict[str, Any]:
    """The resolved job, which the head reads."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(profile, workload, config_map_name(workload.name or "")),
        "data": {JOB_FILE: workload.job_yaml},
    }


def disruption_budget(profile: Profile, workload: Workload) -> dict[str, Any]:
    """Lets no pod of the run be evicted.

    `minAvailable` as a number: `maxUnavailable` needs a controller with a scale subresource, which a RayCluster has not. A pod
    that is not ready may go, so that a broken one does not hold up the drain of its node.
    """
    selector = {
        "matchLabels": {"app.kubernetes.io/instance": workload.name or ""},
        "matchExpressions": [
            {"key": "app.kubernetes.io/component", "operator": "In", "values": [HEAD, WORKER, SUBMITTER]}
        ],
    }
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(profile, workload, workload.name or ""),
        "spec": {
            "minAvailable": workload.cluster.nodes + 2,  # the head and the submitter
            "selector": selector,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def ray_job(profile: Profile, workload: Workload) -> dict[str, Any]:
    """KubeRay's RayJob: brings up a cluster, runs the driver on its head, takes the cluster down."""
    lifecycle = profile.lifecycle
    metadata = _metadata(profile, workload, workload.name or "")
    metadata["labels"] |= queue_labels(profile)
    spec: dict[str, Any] = {
        "entrypoint": entrypoint(),
        "submissionMode": "K8sJobMode",
        "submitterConfig": {"backoffLimit": _SUBMIT_RETRIES},
        "backoffLimit": lifecycle.retries,
    }
    if lifecycle.active_deadline_s:
        spec["activeDeadlineSeconds"] = lifecycle.active_deadline_s
    if lifecycle.pre_running_deadline_s:
        spec["preRunningDeadlineSeconds"] = lifecycle.pre_running_deadline_s
    if lifecycle.deletion_rules:
        spec["deletionStrategy"] = {"deletionRules": [_deletion_rule(rule) for rule in lifecycle.deletion_rules]}
    elif lifecycle.shutdown_after_finish:
        spec |= {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": lifecycle.ttl_s}
    spec["rayClusterSpec"] = _cluster(profile, workload)
    spec["submitterPodTemplate"] = submitter_pod(profile, workload)
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def _cluster(profile: Profile, workload: Workload) -> dict[str, Any]:
    """As many workers as the run has nodes, each with all of the run's ranks on that node."""
    nodes, is_elastic = workload.cluster.nodes, profile.lifecycle.autoscaling
    store = str(object_store_bytes(profile))
    spec: dict[str, Any] = {"rayVersion": profile.images.ray_version, "authOptions": _auth(profile)}
    if profile.security.tls:
        spec["tlsOptions"] = {"enabled": True}
    spec["enableInTreeAutoscaling"] = is_elastic
    if is_elastic:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "securityContext": container_security(),
            "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "512Mi"}},
        }
    spec["headGroupSpec"] = {
        "rayStartParams": {"num-cpus": "0", "object-store-memory": store},
        "template": head_pod(profile, workload),
    }
    group = {
        "groupName": WORKER_GROUP,
        "replicas": nodes,
        "minReplicas": least_nodes(workload.cluster) if is_elastic else nodes,
        "maxReplicas": nodes,
        "rayStartParams": {"object-store-memory": store},
        "template": worker_pod(profile, workload),
    }
    spec["workerGroupSpecs"] = [group]
    return spec


def _auth(profile: Profile) -> dict[str, str]:
    """Said in any case: Ray's own default changes with its version."""
    secret = {"secretName": profile.security.auth_secret} if profile.security.auth_secret else {}
    return {"mode": profile.security.auth, **secret}


def _deletion_rule(rule: DeletionRule) -> dict[str, Any]:
    status = {"jobDeploymentStatus": "Failed"} if rule.deployment_failed else {"jobStatus": rule.job_status}
    return {"policy": rule.policy, "condition": {**status, "ttlSeconds": rule.ttl_s}}


def _metadata(profile: Profile, workload: Workload, name: str) -> dict[str, Any]:
    return {"name": name, "namespace": profile.namespace, "labels": labels(profile, workload)}
