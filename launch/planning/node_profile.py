"""What hardware a plan is for: this machine, a node profile, or the profile of a Kubernetes cluster."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from zerofleet.cluster.host import gpu_memory_bytes, memory_bytes, num_cores, visible_gpus
from zerofleet.k8s.profile import GIB, Profile
from zerofleet.launch.config import JobConfig
from zerofleet.launch.config_fields import validated
from zerofleet.launch.planning.calibration import Calibration
from zerofleet.launch.recipe_text import parse_mapping, read_text
from zerofleet.launch.workload import load_profile
from zerofleet.trainer.config import NonNegativeInt, PositiveFloat, PositiveInt, Precision, Section
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.peaks import dense_16_bit_peak
from zerofleet.trainer.sizing.node import Node
from zerofleet.trainer.sizing.pace import Speeds
from zerofleet.trainer.storage import Storage

_GPU_GIB = re.compile(r"(\d+)\s?GB", re.IGNORECASE)
ATTAINABLE = 0.5
"""Of a GPU's dense peak, what training is reckoned with: no model reaches all of it."""


_FREE = 1e18
"""Bytes per second of what takes no time."""


class NodeProfile(Section):
    """A kind of node, for planning only: nothing is started from it."""

    cpus: PositiveInt
    """CPU cores."""
    memory_gib: PositiveFloat
    """Memory in GiB."""
    shm_gib: PositiveFloat | None = None
    """Size of /dev/shm in GiB; half of the memory by default, as Linux makes it."""
    gpus: NonNegativeInt = 0
    """GPUs of a node."""
    gpu: str = ""
    """Name of the GPU, such as `H100 80GB`: its memory and its dense 16-bit peak are known by it."""
    gpu_memory_gib: PositiveFloat | None = None
    """Memory of one GPU in GiB, where its name does not say."""
    tflops: PositiveFloat | None = None
    """Attainable TFLOP/s of one rank in the precision that is trained in; by default half of the dense 16-bit peak of a GPU that is known."""
    memory_gb_per_s: PositiveFloat | None = None
    """GB/s of one rank's memory (of the GPU, or its share of the host's)."""
    network_gb_per_s: PositiveFloat | None = None
    """GB/s that one rank sends to the other ranks."""
    write_mb_per_s: PositiveFloat | None = None
    """MB/s that one node writes to storage."""
    notice_s: PositiveFloat | None = None
    """Seconds from the notice of a preemption to the kill, such as 120 on AWS's spot market."""
    price_per_hour: PositiveFloat | None = None
    """Of one node, in whatever currency."""
    max_nodes: NonNegativeInt = 0
    """Nodes of this kind that can be had; 0: not known."""


def node_for(job: JobConfig, profile: str | None) -> Node:
    """The node that a job is planned for. NotFoundError when the file is missing, UserError with every mistake in it, or when it does not
    have the job's GPUs."""
    node = this_machine(job) if profile is None else _from_file(Path(profile), job.train.precision)
    wanted = int(job.cluster.gpus_per_rank) * job.cluster.ranks_per_node
    if wanted > node.gpus:
        raise UserError(
            f"cluster.ranks_per_node={job.cluster.ranks_per_node} with cluster.gpus_per_rank={job.cluster.gpus_per_rank:g} take {wanted} GPUs "
            f"of a node and {node.name} has {node.gpus}: lower cluster.ranks_per_node, or plan for other nodes with --profile"
        )
    if wanted and not node.gpu_memory_bytes:
        raise UserError(
            f"how much memory a GPU of {node.name} has is not known: set gpu_memory_gib in a profile (--profile)"
        )
    return node


def this_machine(job: JobConfig) -> Node:
    """The machine that this runs on; how fast it is, is not known without a measurement. A run with a Ray of its own has all its nodes
    here: each has its share. Those of a cluster are taken to be like this one."""
    shm = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    shared_by = 1 if job.cluster.address else job.cluster.nodes
    name = (
        "a node like this machine"
        if job.cluster.address
        else "this machine"
        if shared_by == 1
        else "a share of this machine"
    )
    sizes, gpus = (memory_bytes() // shared_by, shm // shared_by), visible_gpus() // shared_by
    gpu_bytes = gpu_memory_bytes() if gpus else 0
    return Node(name, num_cores() / shared_by, *sizes, gpus, gpu_bytes, disk_bytes=_free_bytes(job))


def _free_bytes(job: JobConfig) -> int | None:
    """Where the run folder will lie; None in an object store, and where that cannot be seen."""
    scheme, has_scheme, _ = job.run.storage.partition("://")
    if has_scheme and scheme not in ("file", "local"):
        return None  # whose client may not be installed here
    folder = Storage(job.run.storage).local_path()
    try:
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    except OSError:  # nobody may look there
        return None


def calibrated(node: Node, found: Calibration | None) -> Node:
    """The node with what was measured on it. Its rate holds for a whole step, so that nothing else takes time; less memory than planned is
    not reckoned with, since another job may take what this one did not."""
    if found is None:
        return node
    rate = f"{found.flops_per_rank / 1e9:.1f} GFLOP/s per rank +- {found.flops_error:.1%}"
    return replace(
        node,
        speeds=Speeds(found.flops_per_rank, _FREE, _FREE),
        speeds_source=f"calibrated {found.measured_at} with {found.parameters / 1e6:.1f} M parameters: {rate}",
        memory_ratio=max(1.0, found.memory_ratio),
    )


def _from_file(path: Path, precision: Precision) -> Node:
    mapping = parse_mapping(read_text(path, "profile"), str(path), "`cpus` and `memory_gib`")
    if "workers" in mapping:
        return node_of_cluster(load_profile(path), path.stem, precision)
    return _of_profile(validated(NodeProfile, mapping, str(path)), path, precision)


def _of_profile(profile: NodeProfile, path: Path, precision: Precision) -> Node:
    shm_gib = profile.memory_gib / 2 if profile.shm_gib is None else profile.shm_gib
    speeds, source = _speeds(profile.gpu, profile.tflops, profile.memory_gb_per_s, profile.network_gb_per_s, precision)
    return Node(
        name=path.stem,
        cpus=profile.cpus,
        memory_bytes=int(profile.memory_gib * GIB),
        shm_bytes=int(shm_gib * GIB),
        gpus=profile.gpus,
        gpu_memory_bytes=int((profile.gpu_memory_gib or _gpu_gib(profile.gpu)) * GIB),
        speeds=speeds,
        speeds_source=source,
        write_bytes_per_s=profile.write_mb_per_s and profile.write_mb_per_s * 1e6,
        notice_s=profile.notice_s,
        price_per_hour=profile.price_per_hour,
        max_nodes=profile.max_nodes,
    )


def node_of_cluster(profile: Profile, name: str, precision: Precision) -> Node:
    """A worker of a Kubernetes cluster."""
    workers, limits = profile.workers, profile.limits
    gpu = workers.gpu_product or ""
    speeds, source = _speeds(gpu, None, None, profile.fabric.rank_gb_per_s, precision)
    shm_gib = workers.memory_gib if limits.shm_gib == "auto" else limits.shm_gib
    return Node(
        name=name,
        cpus=workers.cpus,
        memory_bytes=workers.memory_gib * GIB,
        shm_bytes=int(shm_gib * GIB),
        gpus=workers.gpus,
        gpu_memory_bytes=int((workers.gpu_memory_gib or _gpu_gib(gpu)) * GIB),
        speeds=speeds,
        speeds_source=source,
        write_bytes_per_s=profile.storage.write_mb_per_s * 1e6,
        notice_s=None if limits.termination_grace_s == "auto" else float(limits.termination_grace_s),
        price_per_hour=workers.price_per_hour,
        max_nodes=workers.max_nodes,
    )


def _gpu_gib(name: str) -> float:
    """`NVIDIA-H100-80GB-HBM3` has 80 GB, of which some is the driver's: 79.1 GiB of 80 are there on an H100."""
    found = _GPU_GIB.search(name)
    return 0.0 if found is None else 0.988 * int(found.group(1))


def _speeds(
    gpu: str, tflops: float | None, memory_gb_per_s: float | None, network_gb_per_s: float | None, precision: Precision
) -> tuple[Speeds | None, str]:
    """None where compute, or the network, is not known."""
    peak = dense_16_bit_peak(gpu) if gpu and precision != "fp32" else None
    flops = tflops * 1e12 if tflops else ATTAINABLE * peak if peak else None
    if flops is None or network_gb_per_s is None:
        return None, ""
    source = f"{tflops:g} TFLOP/s of the profile" if tflops else f"{ATTAINABLE:.0%} of {gpu}'s dense peak"
    memory = memory_gb_per_s or (2000.0 if gpu else 5.0)
    return Speeds(flops, memory * 1e9, network_gb_per_s * 1e9), source
