"""What the containers of a run have: security context, environment, volumes, the hook before their end."""

from __future__ import annotations

from typing import Any

from zerofleet.k8s.names import JOB_FILE
from zerofleet.k8s.profile import Profile
from zerofleet.k8s.workload import RAY_END_S, Workload, grace_s

JOB_FOLDER = "/etc/zerofleet"
SCRATCH_FOLDER = "/mnt/scratch"
NODE_NAME = "ZEROFLEET_NODE"
"""The variable by which ranks and node agents know the name of their Kubernetes node (trainer/node_name.py)."""
GCS_ADDRESS = "127.0.0.1:6379"
"""Of the head, as its own processes reach it: KubeRay's port."""


def entrypoint() -> str:
    """What the Ray job runs on the head. KubeRay pastes it into a shell unquoted: nothing of the user's is in it."""
    return f"python -m zerofleet.launch.pod_driver {JOB_FOLDER}/{JOB_FILE}"


def pod_security(profile: Profile) -> dict[str, Any]:
    """Of a pod, for Pod Security `restricted`."""
    security = profile.security
    context: dict[str, Any] = {"runAsNonRoot": security.run_as_user != 0}
    if security.run_as_user is not None:
        context["runAsUser"] = security.run_as_user
    if security.fs_group is not None:
        context["fsGroup"] = security.fs_group
        context["fsGroupChangePolicy"] = "OnRootMismatch"  # else every pod's start walks all checkpoints
    context["seccompProfile"] = {"type": "RuntimeDefault"}
    return context


def container_security(add: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of a container, for Pod Security `restricted` unless capabilities are added."""
    capabilities: dict[str, Any] = {"drop": ["ALL"]}
    if add:
        capabilities["add"] = list(add)
    return {"allowPrivilegeEscalation": False, "capabilities": capabilities}


def pod_basics(profile: Profile) -> dict[str, Any]:
    """Fields of every pod: identity, registry, security."""
    basics: dict[str, Any] = {}
    if profile.security.service_account:
        basics["serviceAccountName"] = profile.security.service_account
    basics["automountServiceAccountToken"] = False
    if profile.images.pull_secrets:
        basics["imagePullSecrets"] = [{"name": name} for name in profile.images.pull_secrets]
    basics["securityContext"] = pod_security(profile)
    return basics


def own_environment(profile: Profile, workload: Workload) -> dict[str, str]:
    """Variables of head and workers that the profile may not set."""
    found = {"ZEROFLEET_STORAGE": workload.storage}
    if profile.storage.claim:
        mount = profile.storage.mount_path
        found |= {"HF_HOME": f"{mount}/huggingface", "ZEROFLEET_CACHE": f"{mount}/cache"}
    return found


def head_environment(profile: Profile, workload: Workload) -> dict[str, str]:
    """The head sees no GPU of its node, a Ray job that is stopped has the time of a save, and the driver answers Prometheus."""
    wait_s = grace_s(profile, workload) - RAY_END_S
    port = profile.monitoring.port
    metrics = {"ZEROFLEET_METRICS": f"0.0.0.0:{port}"} if port else {}
    return {"NVIDIA_VISIBLE_DEVICES": "void", "RAY_JOB_STOP_WAIT_TIME_S": str(wait_s), **metrics}


def worker_environment(profile: Profile) -> dict[str, str]:
    """What NCCL and gloo need to know of the fabric, and where the node's own disk is."""
    fabric = profile.fabric
    found = {"GLOO_SOCKET_IFNAME": fabric.interface}
    if profile.workers.scratch:
        found["ZEROFLEET_SCRATCH"] = SCRATCH_FOLDER
    if not profile.workers.gpus:
        return found
    found |= {
        "NCCL_DEBUG": "WARN",
        "NCCL_SOCKET_IFNAME": fabric.interface,
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    if fabric.kind == "tcp":
        found["NCCL_IB_DISABLE"] = "1"
    if fabric.kind == "efa":
        found["FI_PROVIDER"] = "efa"
    if fabric.hca is not None:
        found["NCCL_IB_HCA"] = fabric.hca
    if fabric.gid_index is not None:
        found["NCCL_IB_GID_INDEX"] = str(fabric.gid_index)
    return found


def environment(profile: Profile, plain: dict[str, str]) -> dict[str, Any]:
    """`env` and `envFrom` of a container, by name; values of secrets by reference only, the node's name by the downward API."""
    env: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in sorted({**profile.env, **plain}.items())
    ]
    for entry in sorted(profile.secret_env, key=lambda entry: entry.variable):
        reference = {"secretKeyRef": {"name": entry.secret, "key": entry.key}}
        env.append({"name": entry.variable, "valueFrom": reference})
    env.append({"name": NODE_NAME, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
    found: dict[str, Any] = {"env": env}
    if profile.storage.secret:
        found["envFrom"] = [{"secretRef": {"name": profile.storage.secret}}]
    return found


def before_end(profile: Profile, workload: Workload, *more: str) -> dict[str, Any]:
    """The hook that has the run saved before the pod's processes are told to end; `more`: further arguments."""
    timeout_s = grace_s(profile, workload) - RAY_END_S
    run = f"{workload.storage.rstrip('/')}/{workload.name}"
    command = ["python", "-m", "zerofleet.launch.pod_save", run, "--timeout", str(timeout_s), *more]
    return {"preStop": {"exec": {"command": command}}}


def memory_volume(num_bytes: int) -> dict[str, Any]:
    """/dev/shm: without one, KubeRay makes one of the whole memory limit."""
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{num_bytes >> 20}Mi"}}


def scratch_volumes(profile: Profile) -> list[dict[str, Any]]:
    """Of a worker: its node's own disk."""
    scratch = profile.workers.scratch
    if scratch is None:
        return []
    size = f"{scratch.size_gib}Gi"
    if scratch.host_path:
        source: dict[str, Any] = {"hostPath": {"path": scratch.host_path, "type": "Directory"}}
    elif scratch.storage_class:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": scratch.storage_class,
            "resources": {"requests": {"storage": size}},
        }
        source = {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    else:
        source = {"emptyDir": {"sizeLimit": size}}
    return [{"name": "scratch", **source}]


def scratch_mounts(profile: Profile) -> list[dict[str, Any]]:
    return [{"name": "scratch", "mountPath": SCRATCH_FOLDER}] if profile.workers.scratch else []


def shared_volumes(profile: Profile) -> list[dict[str, Any]]:
    claim = profile.storage.claim
    return [{"name": "storage", "persistentVolumeClaim": {"claimName": claim}}] if claim else []


def mounts(profile: Profile) -> list[dict[str, Any]]:
    """Of head and workers."""
    found = [{"name": "shm", "mountPath": "/dev/shm"}]
    if profile.storage.claim:
        found.append({"name": "storage", "mountPath": profile.storage.mount_path})
    return found
