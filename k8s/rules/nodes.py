"""Do the job's ranks fit the nodes: GPUs, CPUs, memory, shared memory, placement, fabric."""

from __future__ import annotations

import math
from collections.abc import Iterator

from zerofleet.cluster.config import Finding
from zerofleet.k8s.profile import GIB, Profile
from zerofleet.k8s.rules.naming import error, warning
from zerofleet.k8s.workload import Workload, object_store_bytes, shm_besides_buffers_bytes, shm_bytes

_MOST_FILLED = 0.9
"""Of a scratch volume: the rest is the file system's, and of shards that a rank still reads when they have lost their place."""
_LEAST_OBJECT_STORE_BYTES = 75 << 20
"""Ray's OBJECT_STORE_MINIMUM_MEMORY_BYTES."""


def nodes(profile: Profile, workload: Workload) -> Iterator[Finding]:
    yield from _gpus(profile, workload)
    yield from _cpus(profile, workload)
    yield from _memory(profile, workload)
    yield from _shared_memory(profile, workload)
    yield from _placement(profile)
    yield from _fabric(profile, workload)
    yield from _scratch(profile, workload)


def _gpus(profile: Profile, workload: Workload) -> Iterator[Finding]:
    cluster, pool = workload.cluster, profile.workers
    if cluster.gpus_per_rank and not pool.gpus:
        yield error(
            "cluster.gpus_per_rank",
            "it is 1 and the profile's workers have no GPUs: use a profile of GPU nodes, or set cluster.gpus_per_rank=0",
        )
    elif cluster.gpus_per_rank and cluster.ranks_per_node != pool.gpus:
        yield error(
            "cluster.ranks_per_node",
            f"it is {cluster.ranks_per_node} and a node has {pool.gpus} GPUs, one for each rank: a worker pod takes a whole node. "
            f"Set cluster.ranks_per_node={pool.gpus}",
        )
    elif pool.gpus and not cluster.gpus_per_rank:
        yield error(
            "cluster.gpus_per_rank",
            f"it is 0, and each worker pod would take the {pool.gpus} GPUs of its node for nothing: set it to 1, or use a profile of "
            "CPU nodes",
        )
    if pool.gpus and not pool.gpu_resource.endswith("gpu"):
        yield error(
            "workers.gpu_resource",
            f"KubeRay tells Ray of GPUs whose resource ends with `gpu`, and it is {pool.gpu_resource}: no worker would offer any. Use whole GPUs "
            "(nvidia.com/gpu)",
        )
    if pool.max_nodes and cluster.nodes > pool.max_nodes:
        yield error(
            "cluster.nodes",
            f"it is {cluster.nodes} and the pool has {pool.max_nodes} nodes at most: the job would never start. Set "
            f"cluster.nodes={pool.max_nodes}, or enlarge workers.max_nodes with the pool",
        )


def _cpus(profile: Profile, workload: Workload) -> Iterator[Finding]:
    cluster, pool = workload.cluster, profile.workers
    needed = cluster.ranks_per_node * cluster.cpus_per_rank
    if needed > pool.cpus:
        yield error(
            "cluster.cpus_per_rank",
            f"{cluster.ranks_per_node} ranks with {cluster.cpus_per_rank:g} cores each need {needed:g} and a worker has {pool.cpus}: "
            f"set cluster.cpus_per_rank={pool.cpus / cluster.ranks_per_node:.3g}",
        )


def _memory(profile: Profile, workload: Workload) -> Iterator[Finding]:
    limit = profile.workers.memory_gib * GIB
    needed = workload.host_bytes + shm_bytes(profile, workload)
    if workload.parameters and needed > limit:
        yield warning(
            "workers.memory_gib",
            f"ranks and Ray need about {workload.host_bytes / GIB:.1f} GiB and /dev/shm up to {shm_bytes(profile, workload) / GIB:.1f} GiB, "
            f"and the limit is {profile.workers.memory_gib} GiB: the kernel may kill a rank. Use more nodes (a part of the state gets "
            "smaller), a higher train.zero_stage, or larger nodes",
        )
    if object_store_bytes(profile) < _LEAST_OBJECT_STORE_BYTES:
        yield error(
            "limits.object_store_gib",
            f"it is {profile.limits.object_store_gib:g}, and Ray does not start with less than {_LEAST_OBJECT_STORE_BYTES >> 20} MiB: set 0.1 or more",
        )
    if object_store_bytes(profile) > profile.head.memory_gib * GIB // 2:
        yield error(
            "limits.object_store_gib",
            f"it is {profile.limits.object_store_gib:g} and the head has {profile.head.memory_gib} GiB in all: lower it to 1",
        )


def _shared_memory(profile: Profile, workload: Workload) -> Iterator[Finding]:
    size, limit = shm_bytes(profile, workload), profile.workers.memory_gib * GIB
    if workload.parameters is None:
        yield error(
            "model.config",
            "the number of the model's parameters is not known from it, and /dev/shm and the grace period are reckoned with it: "
            "give it (--num-parameters 7.2e9)",
        )
        return
    if size > limit:
        yield error(
            "limits.shm_gib",
            f"/dev/shm would have {size / GIB:.1f} GiB and the worker's memory limit, which it counts against, is "
            f"{profile.workers.memory_gib} GiB: the pod would be killed for memory. Use `auto`, or less than half of the limit",
        )
    least = shm_besides_buffers_bytes(profile, workload) + workload.least_buffer_bytes
    if profile.limits.shm_gib != "auto" and size < least:
        yield error(
            "limits.shm_gib",
            f"two snapshots, Ray's object store and the ranks' communication take {least / GIB:.1f} GiB and it is "
            f"{profile.limits.shm_gib:g}: no snapshot would fit. Use `auto`, or at least {least / GIB:.1f}",
        )
    elif not workload.num_buffers:
        yield warning(
            "workers.memory_gib",
            f"two snapshots of {workload.snapshot_bytes / GIB:.1f} GiB per node do not fit into half of the {profile.workers.memory_gib} GiB "
            "that the ranks leave: every checkpoint is written while they wait, and a restart reads storage. Use more or larger nodes",
        )


def _placement(profile: Profile) -> Iterator[Finding]:
    for where, pool in (("head", profile.head), ("workers", profile.workers)):
        selected = bool(pool.node_selector) or (where == "workers" and bool(profile.workers.gpu_product))
        if pool.tolerations and not selected:
            yield error(
                f"{where}.tolerations",
                "a toleration lets pods onto tainted nodes but does not send them there: name the nodes by "
                f"{where}.node_selector" + (" or workers.gpu_product" if where == "workers" else ""),
            )
        for number, toleration in enumerate(pool.tolerations):
            if (toleration.operator == "Equal") != (toleration.value is not None):
                yield error(
                    f"{where}.tolerations.{number}",
                    f"operator {toleration.operator} {'needs a' if toleration.operator == 'Equal' else 'takes no'} value: "
                    f"{'give `value`' if toleration.operator == 'Equal' else 'use `operator: Equal`, or remove it'}",
                )
    if any(toleration.key == profile.workers.gpu_resource for toleration in profile.head.tolerations):
        yield error(
            "head.tolerations",
            f"the head trains nothing, and with the toleration of {profile.workers.gpu_resource} it may take a place on a GPU node: remove it",
        )
    product = profile.workers.node_selector.get("nvidia.com/gpu.product")
    if product is not None and profile.workers.gpu_product not in (None, product):
        yield error(
            "workers.gpu_product",
            f"it is {profile.workers.gpu_product} and workers.node_selector says {product}: keep one of the two",
        )
    if profile.workers.gpus:
        if not any(toleration.key == profile.workers.gpu_resource for toleration in profile.workers.tolerations):
            yield warning(
                "workers.tolerations",
                f"GPU nodes usually have the taint {profile.workers.gpu_resource}:NoSchedule, which is not tolerated: workers would stay "
                f"pending. Add {{key: {profile.workers.gpu_resource}}} unless your nodes have none",
            )
    elif profile.workers.gpu_product:
        yield error(
            "workers.gpu_product", "it names a GPU and workers.gpus is 0: say how many a node has, or remove it"
        )


def _fabric(profile: Profile, workload: Workload) -> Iterator[Finding]:
    fabric = profile.fabric
    if fabric.kind == "tcp":
        for field in ("resource", "devices", "hugepages_2mi_gib", "hca", "gid_index"):
            if getattr(fabric, field) not in (None, 0):
                yield error(f"fabric.{field}", "it has no effect with fabric.kind=tcp: remove it, or set fabric.kind")
        return
    example = "rdma/ib" if fabric.kind == "infiniband" else "vpc.amazonaws.com/efa"
    if not (fabric.resource and fabric.devices) and not fabric.host_network:
        yield error(
            "fabric.resource",
            f"{fabric.kind} needs devices in the pod, and none are asked for: NCCL would fall back to sockets without a word. Set "
            f"fabric.resource (such as {example}) and fabric.devices",
        )
    if not workload.cluster.gpus_per_rank:
        yield error(
            "fabric.kind",
            f"{fabric.kind} carries NCCL's traffic, and the ranks have no GPUs (gloo uses sockets): set tcp",
        )
    if fabric.kind == "efa" and not fabric.hugepages_2mi_gib:
        yield error(
            "fabric.hugepages_2mi_gib",
            "libfabric's EFA provider takes its buffers from pages of 2 MiB and the pod asks for none: set 5 or more, and reserve them on the nodes",
        )
    if fabric.kind == "efa" and (fabric.hca is not None or fabric.gid_index is not None):
        yield error(
            "fabric.hca",
            "NCCL_IB_* are for InfiniBand and RoCE, EFA takes no notice of them: remove fabric.hca and fabric.gid_index",
        )


def _scratch(profile: Profile, workload: Workload) -> Iterator[Finding]:
    pool, scratch = profile.workers, profile.workers.scratch
    if scratch is None:
        return
    if scratch.storage_class and scratch.host_path:
        yield error(
            "workers.scratch",
            "it names a StorageClass and a folder of the node, and a volume is one of them: remove one",
        )
    if workload.stream_bytes > _MOST_FILLED * scratch.size_gib * GIB:
        yield error(
            "workers.scratch.size_gib",
            f"it is {scratch.size_gib} and data.stream.max_bytes={workload.stream_bytes} ({workload.stream_bytes / GIB:.1f} GiB) of shards will fill it, "
            f"besides what the file system takes: the pod would be evicted, or its disk full. Raise it to {math.ceil(workload.stream_bytes / GIB / _MOST_FILLED)}, "
            "or lower data.stream.max_bytes",
        )
    user = profile.security.run_as_user
    if scratch.host_path and user != 0:
        yield warning(
            "workers.scratch.host_path",
            f"Kubernetes changes no owner of a node's folder (fsGroup is not for it): make {scratch.host_path} writable for user "
            f"{user if user is not None else 'ids of this namespace'} on every node, or no rank can write there",
        )
    is_of_kubelet = not (scratch.storage_class or scratch.host_path)
    if is_of_kubelet and pool.ephemeral_storage_gib <= scratch.size_gib:
        yield error(
            "workers.ephemeral_storage_gib",
            f"an emptyDir of {scratch.size_gib} GiB is a part of it, besides logs and what containers write, and it is {pool.ephemeral_storage_gib}: "
            f"set it to more than {scratch.size_gib}, so that the pod goes where there is room",
        )
