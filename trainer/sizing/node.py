"""What one node takes and what it has: host memory by what holds it, device memory, disk; and what does not fit, in words."""

from __future__ import annotations

from dataclasses import dataclass

from zerofleet.trainer.checkpoint.buffers import NO_BUFFERS, Buffers, NodeMemory, plan_buffers
from zerofleet.trainer.sizing.memory import FP32_BYTES, Moment, RankMemory, rank_memory
from zerofleet.trainer.sizing.model import ModelSizes
from zerofleet.trainer.sizing.pace import Speeds
from zerofleet.trainer.sizing.setup import Setup
from zerofleet.trainer.sizing.state import StateSizes

GIB = 2**30
NODE_BYTES = int(1.0 * GIB)
"""Ray's processes, the driver and the node agent of a node."""
SYSTEM_BYTES = int(0.7 * GIB)
"""The kernel, page tables, the services of the host."""
ZYGOTE_BYTES = int(0.9 * GIB)
"""torch, DeepSpeed and transformers, once per node: ranks are forked from the process that has imported them."""
RANK_BYTES = int(0.19 * GIB)
"""A rank's own: pages of the zygote that it writes to, batches, threads, and in a heap that keeps what was freed what building the model took."""
RANK_BYTES_GIVING_BACK = int(0.06 * GIB)
"""Where freed memory goes back: 39 MiB were seen with a model of almost no parameters."""
RANK_BYTES_WITH_GPU = int(2.0 * GIB)
"""With the host side of CUDA and NCCL, which nothing shares."""
CONTEXT_BYTES = int(1.2 * GIB)
"""CUDA context, cuBLAS workspaces and NCCL's buffers on a device."""
RESERVE_SHARE = 0.06
"""Of what a rank allocates on a GPU: what lies idle between what it has allocated."""
HEAP_SHARES = (0.07, 0.7, 0.5, 1.05)
"""On a CPU, by stage: the heap keeps what was freed (trainer/allocator.py), and the next tensor often does not fit into it. Resident over live
bytes of ranks with 77 M parameters."""
GIVEN_BACK_SHARE = 0.03
"""On a CPU that gives freed memory back: what lies idle between small tensors (benchmarks/results/2026-11-23-plan-memory.md)."""
SHM_PER_RANK_BYTES = 64 << 20
"""gloo's, NCCL's and the communication op's shared memory."""


@dataclass(frozen=True)
class Node:
    """A node's hardware. What is not known is None."""

    name: str
    cpus: float
    memory_bytes: int
    shm_bytes: int
    gpus: int = 0
    gpu_memory_bytes: int = 0
    speeds: Speeds | None = None
    speeds_source: str = ""
    memory_ratio: float = 1.0
    """Measured over planned memory of a rank, where a calibration says so; on CPUs only."""
    write_bytes_per_s: float | None = None
    notice_s: float | None = None
    """From the notice of a preemption to the kill."""
    price_per_hour: float | None = None
    max_nodes: int = 0
    """Nodes of this kind; 0: not known."""
    disk_bytes: int | None = None
    """That are free where the run folder will lie."""


@dataclass(frozen=True)
class Shortage:
    """Something that does not fit."""

    what: str
    needed_bytes: int
    limit_bytes: int


@dataclass(frozen=True)
class Footprint:
    """What a job takes of a node."""

    setup: Setup
    memory: RankMemory
    device: dict[str, int]
    """Of one rank's GPU at its peak; empty without GPUs."""
    host: dict[str, int]
    """Of the whole node's memory, /dev/shm included."""
    load_bytes: int
    """Host memory while the model is built or loaded, before training."""
    buffers: Buffers
    shortages: tuple[Shortage, ...]

    @property
    def fits(self) -> bool:
        return not self.shortages

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        """The higher of training and loading."""
        return max(sum(self.host.values()), self.load_bytes)

    @property
    def bytes_per_rank(self) -> int:
        """What one rank takes of its own: device and host together."""
        own = (
            self.device_bytes
            if self.setup.on_gpu
            else rank_bytes(self.setup) + with_reserve(self.memory.peak, self.setup)
        )
        return own + self.memory.offloaded_bytes


def rank_bytes(setup: Setup) -> int:
    """Host memory that a rank has of its own whatever it trains."""
    if setup.on_gpu:
        return RANK_BYTES_WITH_GPU
    return RANK_BYTES if setup.keeps_freed_memory else RANK_BYTES_GIVING_BACK


def with_reserve(moment: Moment, setup: Setup) -> int:
    """The moment's bytes and what lies idle between them."""
    if setup.on_gpu:
        share = RESERVE_SHARE
    else:
        share = HEAP_SHARES[setup.zero_stage] if setup.keeps_freed_memory else GIVEN_BACK_SHARE
    return int(moment.total_bytes * (1 + share))


def footprint(model: ModelSizes, setup: Setup, node: Node, takes_snapshots: bool = True) -> Footprint:
    """A job on a node of its run."""
    memory, ranks = rank_memory(model, setup), setup.ranks_per_node
    peak = with_reserve(memory.peak, setup)
    device = {}
    if setup.on_gpu:
        idle = peak - memory.peak.total_bytes
        device = {**memory.peak.parts, "context and communication": CONTEXT_BYTES, "fragmentation reserve": idle}
    own = rank_bytes(setup) if setup.on_gpu else int((rank_bytes(setup) + peak) * node.memory_ratio)
    base = SYSTEM_BYTES + NODE_BYTES + ZYGOTE_BYTES + ranks * SHM_PER_RANK_BYTES
    load_bytes = base + ranks * (rank_bytes(setup) + load_bytes_of(model, setup))
    buffers, buffer_bytes = _buffers(model, setup, node, load_bytes) if takes_snapshots else (NO_BUFFERS, 0)
    host = {
        "kernel and services": SYSTEM_BYTES,
        "Ray, driver, node agent": NODE_BYTES,
        "imports, shared by the ranks": ZYGOTE_BYTES,
        "ranks": ranks * own,
        "offloaded states": ranks * memory.offloaded_bytes,
        "snapshots in /dev/shm": buffer_bytes,
        "communication in /dev/shm": ranks * SHM_PER_RANK_BYTES,
    }
    host = {name: size for name, size in host.items() if size}
    return Footprint(
        setup, memory, device, host, load_bytes, buffers, _shortages(setup, node, device, host, load_bytes)
    )


def load_bytes_of(model: ModelSizes, setup: Setup) -> int:
    """Host memory of one rank while its model is built: below stage 3 all of it in fp32, on CPUs with the flat copy that DeepSpeed makes of
    it; at stage 3 a layer at a time, beside the partition."""
    whole = FP32_BYTES * model.parameters
    if setup.zero_stage == 3:
        part = 0 if setup.on_gpu else (setup.element_bytes + 2 * FP32_BYTES) * setup.partition(model.parameters)
        return part + FP32_BYTES * max(model.layer_parameters, model.largest_parameter)
    if setup.on_gpu or setup.zero_stage == 0:
        return whole
    return whole + setup.element_bytes * model.parameters + FP32_BYTES * setup.partition(model.parameters)


def _buffers(model: ModelSizes, setup: Setup, node: Node, load_bytes: int) -> tuple[Buffers, int]:
    """As many snapshots as the ranks will find room for: by the same rule, with what is free when they have built their model."""
    sizes = StateSizes(
        model.parameters, setup.zero_stage, setup.precision, setup.nodes, setup.ranks_per_node, setup.moments_precision
    )
    free = NodeMemory(node.shm_bytes, max(0, node.memory_bytes - load_bytes))
    buffers = plan_buffers(free, sizes.buffer_bytes(Buffers(1, 0)), has_buddy=setup.nodes > 1)
    return buffers, sizes.buffer_bytes(buffers)


def _shortages(
    setup: Setup, node: Node, device: dict[str, int], host: dict[str, int], load_bytes: int
) -> tuple[Shortage, ...]:
    found = []
    if setup.on_gpu and sum(device.values()) > node.gpu_memory_bytes:
        found.append(Shortage("device memory of a rank", sum(device.values()), node.gpu_memory_bytes))
    if (needed := sum(host.values())) > node.memory_bytes:
        found.append(Shortage("memory of a node", needed, node.memory_bytes))
    if load_bytes > node.memory_bytes:
        found.append(Shortage("memory of a node while the model is loaded", load_bytes, node.memory_bytes))
    return tuple(found)
