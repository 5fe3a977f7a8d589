"""The three kinds of pods: head, worker and submitter. Pure: profile and workload in, a pod template out."""

from __future__ import annotations

from typing import Any

from zerofleet.k8s.containers import (
    JOB_FOLDER,
    before_end,
    container_security,
    environment,
    head_environment,
    memory_volume,
    mounts,
    own_environment,
    pod_basics,
    scratch_mounts,
    scratch_volumes,
    shared_volumes,
    worker_environment,
)
from zerofleet.k8s.names import (
    HEAD,
    HEAD_PORTS,
    STAY,
    SUBMITTER,
    TRAIN_METRICS,
    WORKER,
    config_map_name,
    labels,
    pod_selector,
    worker_annotations,
)
from zerofleet.k8s.profile import HeadPool, Profile, Toleration, WorkerPool
from zerofleet.k8s.workload import Workload, grace_s, object_store_bytes, shm_bytes

SUBMITTER_CONTAINER = "ray-job-submitter"
"""KubeRay's name for it. Its log is the driver's."""
HEAD_CONTAINER = "ray-head"
_HEAD_SHM_BYTES = 256 << 20
"""Of the head's /dev/shm, besides Ray's object store."""


def head_pod(profile: Profile, workload: Workload) -> dict[str, Any]:
    """Ray's head and the run's driver. It offers no CPU to Ray, so that no rank lands on it."""
    pool = profile.head
    container = {
        "name": HEAD_CONTAINER,
        **_image(profile),
        "ports": _head_ports(profile),
        "resources": _equal(head_resources(profile)),
        **environment(profile, {**own_environment(profile, workload), **head_environment(profile, workload)}),
        "volumeMounts": [*mounts(profile), {"name": "job", "mountPath": JOB_FOLDER, "readOnly": True}],
        "securityContext": container_security(),
        "lifecycle": before_end(profile, workload),
    }
    spec = {
        **pod_basics(profile),
        **_placement(pool),
        "terminationGracePeriodSeconds": grace_s(profile, workload),
        "containers": [container],
        "volumes": [
            memory_volume(object_store_bytes(profile) + _HEAD_SHM_BYTES),
            *shared_volumes(profile),
            {"name": "job", "configMap": {"name": config_map_name(workload.name or "")}},
        ],
    }
    if profile.lifecycle.autoscaling:
        spec["automountServiceAccountToken"] = True  # the autoscaler changes the RayCluster
    return {"metadata": {"labels": labels(profile, workload, HEAD), "annotations": dict(STAY)}, "spec": spec}


def worker_pod(profile: Profile, workload: Workload) -> dict[str, Any]:
    """A whole node: all its GPUs, so that one node agent holds them."""
    fabric = profile.fabric
    container = {
        "name": "ray-worker",
        **_image(profile),
        "resources": _equal(worker_resources(profile)),
        **environment(profile, {**own_environment(profile, workload), **worker_environment(profile)}),
        "volumeMounts": [*mounts(profile), *scratch_mounts(profile)],
        "securityContext": container_security(("IPC_LOCK",) if fabric.ipc_lock else ()),
        "lifecycle": before_end(profile, workload, "--leave"),
    }
    spec = {
        **pod_basics(profile),
        **_placement(profile.workers),
        "affinity": _affinity(profile, workload),
        "terminationGracePeriodSeconds": grace_s(profile, workload),
        "containers": [container],
        "volumes": [
            memory_volume(shm_bytes(profile, workload)),
            *shared_volumes(profile),
            *scratch_volumes(profile),
        ],
    }
    if profile.workers.runtime_class:
        spec["runtimeClassName"] = profile.workers.runtime_class
    if fabric.host_network:
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    metadata = {"labels": labels(profile, workload, WORKER), "annotations": worker_annotations(profile)}
    return {"metadata": metadata, "spec": spec}


def submitter_pod(profile: Profile, workload: Workload) -> dict[str, Any]:
    """Hands the job to Ray and follows its log. KubeRay's own has no security context: a restricted namespace refuses it."""
    container = {
        "name": SUBMITTER_CONTAINER,
        **_image(profile),
        "resources": {"requests": submitter_requests(), "limits": {"cpu": "1", "memory": "1Gi"}},
        "securityContext": container_security(),
    }
    spec = {**pod_basics(profile), **_placement(profile.head), "restartPolicy": "Never", "containers": [container]}
    return {"metadata": {"labels": labels(profile, workload, SUBMITTER), "annotations": dict(STAY)}, "spec": spec}


def _head_ports(profile: Profile) -> list[dict[str, Any]]:
    """All of them: once a head names one port, KubeRay's service for it has no others (it finds the dashboard by name)."""
    own = {TRAIN_METRICS: profile.monitoring.port} if profile.monitoring.port else {}
    return [{"name": name, "containerPort": number} for name, number in {**HEAD_PORTS, **own}.items()]


def submitter_requests() -> dict[str, str]:
    """KubeRay's own for it."""
    return {"cpu": "500m", "memory": "200Mi"}


def head_resources(profile: Profile) -> dict[str, str]:
    """Requests and limits of the head."""
    return {"cpu": str(profile.head.cpus), "memory": f"{profile.head.memory_gib}Gi"}


def worker_resources(profile: Profile) -> dict[str, str]:
    """Requests and limits of a worker: what its node has."""
    pool, fabric = profile.workers, profile.fabric
    found = {"cpu": str(pool.cpus), "memory": f"{pool.memory_gib}Gi"}
    if pool.ephemeral_storage_gib:
        found["ephemeral-storage"] = f"{pool.ephemeral_storage_gib}Gi"
    if pool.gpus:
        found[pool.gpu_resource] = str(pool.gpus)
    if fabric.resource and fabric.devices:
        found[fabric.resource] = str(fabric.devices)
    if fabric.hugepages_2mi_gib:
        found["hugepages-2Mi"] = f"{fabric.hugepages_2mi_gib}Gi"
    return found


def _image(profile: Profile) -> dict[str, str]:
    return {"image": profile.images.image, "imagePullPolicy": profile.images.pull_policy}


def _equal(resources: dict[str, str]) -> dict[str, Any]:
    """Requests equal to limits: the kubelet takes nothing back, and Ray counts what there is."""
    return {"requests": dict(resources), "limits": dict(resources)}


def node_selector(pool: HeadPool | WorkerPool) -> dict[str, str]:
    """Labels of the nodes that pods of this pool go to."""
    selector = dict(sorted(pool.node_selector.items()))
    if isinstance(pool, WorkerPool) and pool.gpu_product:
        selector["nvidia.com/gpu.product"] = pool.gpu_product
    return selector


def _placement(pool: HeadPool | WorkerPool) -> dict[str, Any]:
    selector = node_selector(pool)
    found: dict[str, Any] = {"nodeSelector": selector} if selector else {}
    if pool.tolerations:
        found["tolerations"] = [toleration(each) for each in pool.tolerations]
    return found


def toleration(toleration: Toleration) -> dict[str, str]:
    """As the API spells it."""
    value = {} if toleration.value is None else {"value": toleration.value}
    return {"key": toleration.key, "operator": toleration.operator, **value, "effect": toleration.effect}


def _affinity(profile: Profile, workload: Workload) -> dict[str, Any]:
    """Two workers of a run never share a host: its loss would cost both, replicas included. Where no queue sees to it, they are kept
    near each other here."""
    selector = {"labelSelector": {"matchLabels": pod_selector(workload, WORKER)}}
    apart = {**selector, "topologyKey": "kubernetes.io/hostname"}
    found = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    topology = profile.queue.topology
    if topology is None or profile.queue.kind != "none":
        return found
    near: dict[str, Any] = {**selector, "topologyKey": topology.level}
    if topology.mode == "required":
        return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [near]}, **found}
    preferred = [{"weight": 100, "podAffinityTerm": near}]
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}, **found}
