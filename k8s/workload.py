"""What a job asks of Kubernetes, in plain values, and the sizes that follow from it and a profile."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zerofleet.cluster.config import ClusterConfig
from zerofleet.k8s.profile import GIB, Profile

RAY_END_S = 15
"""Seconds that Ray's own processes have to end after the save."""
SHM_PER_RANK_BYTES = 256 << 20
"""Shared memory of NCCL's, gloo's and the communication op's for one rank."""
_GRACE_UNIT_S = 30


@dataclass(frozen=True)
class LocalPath:
    """A path of the recipe that pods must be able to open."""

    where: str
    """The setting, such as `data.files.0`."""
    path: str


@dataclass(frozen=True)
class Workload:
    """A job as pods see it."""

    name: str | None
    """`run.name`; none when the recipe leaves it open."""
    job_yaml: str
    """The resolved job that the head reads."""
    storage: str
    """URL or path that run folders lie in, inside the pods."""
    cluster: ClusterConfig
    paths: tuple[LocalPath, ...]
    """Every local path of the recipe, run.storage included."""
    urls: tuple[LocalPath, ...]
    """Every URL of the recipe."""
    stream_bytes: int
    """Most bytes of shards that a node keeps on its disk; 0: the data is not streamed."""
    wants_wandb: bool
    parameters: int | None
    """Of the model; none when nothing says how many."""
    checkpoint_bytes: int
    """Of one checkpoint."""
    snapshot_bytes: int
    """Of one step's snapshots on one node, when the run has as few nodes as it may."""
    num_buffers: int
    """Snapshots that the node's memory holds, of its own ranks and of the buddy's; 0: none fit."""
    buffer_bytes: int
    """What they take of /dev/shm."""
    least_buffer_bytes: int
    """What two snapshots take, the fewest that are of use."""
    host_bytes: int
    """Memory that a node's processes take besides /dev/shm."""


def least_nodes(cluster: ClusterConfig) -> int:
    """Nodes that the run has at least."""
    return cluster.min_nodes or cluster.nodes


def object_store_bytes(profile: Profile) -> int:
    """Of each pod's Ray."""
    return int(profile.limits.object_store_gib * GIB)


def shm_besides_buffers_bytes(profile: Profile, workload: Workload) -> int:
    """Ray's object store and the ranks' communication."""
    return object_store_bytes(profile) + workload.cluster.ranks_per_node * SHM_PER_RANK_BYTES


def shm_bytes(profile: Profile, workload: Workload) -> int:
    """Size of a worker's /dev/shm, in full MiB."""
    if profile.limits.shm_gib != "auto":
        return int(profile.limits.shm_gib * GIB)
    needed = shm_besides_buffers_bytes(profile, workload) + workload.buffer_bytes
    return -(-needed // 2**20) * 2**20


def save_s(profile: Profile, workload: Workload) -> int:
    """Seconds in which a node writes its part of a checkpoint."""
    return math.ceil(workload.snapshot_bytes / (profile.storage.write_mb_per_s * 1e6))


def needed_grace_s(profile: Profile, workload: Workload) -> int:
    """Seconds from the notice to a durable checkpoint and Ray's end."""
    return profile.limits.drain_s + save_s(profile, workload) + RAY_END_S


def grace_s(profile: Profile, workload: Workload) -> int:
    """The pods' grace period."""
    if profile.limits.termination_grace_s != "auto":
        return profile.limits.termination_grace_s
    return -(-needed_grace_s(profile, workload) // _GRACE_UNIT_S) * _GRACE_UNIT_S


def summary(profile: Profile, workload: Workload) -> list[str]:
    """The arithmetic in words, for whoever reviews the documents."""
    cluster = workload.cluster
    ranks = (
        f"{cluster.nodes} worker pod(s) x {cluster.ranks_per_node} ranks = world size {cluster.world_size}, and a head"
    )
    assert workload.parameters, "lint refuses a model of unknown size"
    return [
        ranks,
        f"{workload.parameters / 1e6:,.1f} M parameters: {workload.checkpoint_bytes / 1e9:.2f} GB per checkpoint, "
        f"{workload.snapshot_bytes / 1e9:.2f} GB of it on a node",
        f"/dev/shm {shm_bytes(profile, workload) / GIB:.1f} GiB of {profile.workers.memory_gib} GiB: {workload.num_buffers} snapshots "
        f"({workload.buffer_bytes / GIB:.1f} GiB), Ray's object store, the ranks' communication",
        f"grace period {grace_s(profile, workload)} s: {profile.limits.drain_s} s for the step and the commit, "
        f"{save_s(profile, workload)} s to write at {profile.storage.write_mb_per_s:g} MB/s, {RAY_END_S} s for Ray",
    ]
