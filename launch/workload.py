"""A job as Kubernetes sees it: where its files lie in the pods, and the sizes that follow from its model."""

from __future__ import annotations

from pathlib import Path

from zerofleet.k8s.containers import GCS_ADDRESS
from zerofleet.k8s.profile import GIB, Profile
from zerofleet.k8s.workload import LocalPath, Workload, least_nodes, object_store_bytes
from zerofleet.launch.config import JobConfig
from zerofleet.launch.config_fields import validated
from zerofleet.launch.recipe_text import parse_mapping, read_text
from zerofleet.trainer.checkpoint.buffers import NO_BUFFERS, Buffers, NodeMemory, plan_buffers
from zerofleet.trainer.config import SourceFields, is_of_python
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import default_storage
from zerofleet.trainer.sizing import StateSizes, parameters_of

NODE_BYTES = 2 * GIB
"""Node agent, zygote and Ray's processes on a worker."""
RANK_BYTES = 2 * GIB
"""A rank without its model: its own imports, the device's context, batches (2.2 GB were seen with small partitions on CPUs)."""


def load_profile(path: Path | str) -> Profile:
    """NotFoundError when the file is missing, UserError with every mistake in it."""
    text = read_text(Path(path), "profile")
    mapping = parse_mapping(text, str(path), "`namespace`, `images`, `workers` and `storage`")
    return validated(Profile, mapping, str(path))


def workload_of(job: JobConfig, profile: Profile, num_parameters: int | None = None) -> Workload:
    """`num_parameters` of the model, where the recipe does not tell. Of the machine it reads ZEROFLEET_STORAGE only."""
    if job.silos is not None:
        raise UserError(
            "a job with `silos` is not made into pods yet: run its driver where it reaches the silos' Ray clusters, and name those by "
            "silos.members.NAME.address"
        )
    if job.cluster.labels:
        raise UserError(
            "cluster.labels are those of a Ray cluster that is there already, and a job in pods has one of its own: choose the pods' nodes by "
            "workers.node_selector of the profile, and remove cluster.labels"
        )
    job = in_pods(job, profile)
    parameters = num_parameters or parameters_of(job.train_config())
    sizes = StateSizes(
        parameters=parameters or 0,
        zero_stage=job.train.zero_stage,
        precision=job.train.precision,
        nodes=least_nodes(job.cluster),
        ranks_per_node=job.cluster.ranks_per_node,
        moments_precision=job.train.moments_precision,
    )
    host_bytes = host_bytes_of(job, sizes)
    buffers = _buffers(job, profile, sizes, host_bytes)
    files = _files(job)
    return Workload(
        name=job.run.name,
        job_yaml=job.to_yaml(),
        storage=job.run.storage,
        cluster=job.cluster,
        paths=tuple(file for file in files if "://" not in file.path),
        urls=tuple(file for file in files if "://" in file.path),
        stream_bytes=job.data.stream.max_bytes if job.data.stream else 0,
        wants_wandb=job.tracking.wandb.enabled,
        parameters=parameters,
        checkpoint_bytes=sizes.checkpoint_bytes,
        snapshot_bytes=sizes.snapshot_bytes,
        num_buffers=buffers.own + buffers.replicas,
        buffer_bytes=sizes.buffer_bytes(buffers),
        least_buffer_bytes=sizes.buffer_bytes(Buffers(2, 0)) if _takes_snapshots(job) else 0,
        host_bytes=host_bytes,
    )


def in_pods(job: JobConfig, profile: Profile) -> JobConfig:
    """The job with the profile's storage, where the recipe leaves it open, on the Ray cluster of its own pods."""
    local = str(Path(default_storage()).expanduser().absolute())
    if job.run.storage in (default_storage(), local):
        storage = profile.storage.url or f"{profile.storage.mount_path}/runs"
    else:
        storage = job.run.storage.removeprefix("file://")
    run = job.run.model_copy(update={"storage": storage})
    cluster = job.cluster.model_copy(update={"address": GCS_ADDRESS})
    return job.model_copy(update={"run": run, "cluster": cluster})


def host_bytes_of(job: JobConfig, sizes: StateSizes) -> int:
    """Memory of a node's processes besides /dev/shm; on CPUs the training state is part of it, and what is offloaded."""
    zero = job.deepspeed.get("zero_optimization", {})
    offloads = isinstance(zero, dict) and any("offload" in key for key in zero)
    states = sizes.rank_bytes if offloads or not job.cluster.gpus_per_rank else 0
    return NODE_BYTES + job.cluster.ranks_per_node * (RANK_BYTES + states)


def _takes_snapshots(job: JobConfig) -> bool:
    return job.checkpoint.snapshot_interval_steps != 0


def _buffers(job: JobConfig, profile: Profile, sizes: StateSizes, host_bytes: int) -> Buffers:
    """As many as the ranks will find room for: by the same rule, with the memory that they leave free."""
    if not _takes_snapshots(job) or not sizes.parameters:
        return NO_BUFFERS
    free = max(0, profile.workers.memory_gib * GIB - host_bytes - object_store_bytes(profile))
    shm = free if profile.limits.shm_gib == "auto" else int(profile.limits.shm_gib * GIB)
    return plan_buffers(NodeMemory(shm, free), sizes.buffer_bytes(Buffers(1, 0)), has_buddy=job.cluster.nodes > 1)


def _files(job: JobConfig) -> list[LocalPath]:
    """Every path and URL of the recipe, file:// as a path; hub ids are neither."""
    found = [LocalPath("run.storage", job.run.storage)]
    sources: dict[str, SourceFields] = {"data": job.data}
    sources |= {f"data.sources.{name}": source for name, source in job.data.sources.items()}
    for where, source in sources.items():
        found += [
            LocalPath(f"{where}.files.{n}", file) for n, file in enumerate(source.files) if not is_of_python(file)
        ]
    named = {
        "data.cache": job.data.cache,
        "data.tokenizer": job.data.tokenizer,
        "model.pretrained": job.model.pretrained,
        "run.init_from": job.run.init_from,
    }
    found += [
        LocalPath(where, path) for where, path in named.items() if path and (path.startswith("/") or "://" in path)
    ]
    if job.data.stream is not None:
        found.append(LocalPath("data.stream.url", job.data.stream.url))
    return [LocalPath(file.where, file.path.removeprefix("file://")) for file in found]
