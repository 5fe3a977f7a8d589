"""How long a step takes at least: a roofline (Williams, Waterman and Patterson 2009) over compute, the optimizer's memory traffic and
the network, with constants of the hardware or of a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from zerofleet.trainer.sizing.memory import FP32_BYTES
from zerofleet.trainer.sizing.model import ModelSizes
from zerofleet.trainer.sizing.setup import Setup
from zerofleet.trainer.sizing.traffic import traffic_of

RECOMPUTE = 4 / 3
"""With checkpointing the forward, a third of forward and backward, is done twice."""
GIVING_BACK = 2.4
"""Of compute on a CPU that gives freed memory back, every tensor of 64 KiB and more: what page faults take of a small model's step
(benchmarks/results/2026-11-24-speed.md). Of a large one's it is not known."""


@dataclass(frozen=True)
class Speeds:
    """Of one rank, per second."""

    flops: float
    """Of a matmul in the precision that is trained in."""
    memory_bytes: float
    """Of the memory that holds the optimizer's states."""
    network_bytes: float
    """That it sends to the others."""
    host_bytes: float = 25e9
    """Between device and host, and of the host's memory for an offloaded optimizer: PCIe 4.0 x16."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one step by what takes them, one after the other; what overlaps makes it shorter."""

    compute_s: float
    optimizer_s: float
    network_s: float

    @property
    def bound_s(self) -> float:
        """No step is shorter: compute and network side by side, then the optimizer."""
        return max(self.compute_s, self.network_s) + self.optimizer_s

    @property
    def step_s(self) -> float:
        """Nothing overlaps."""
        return self.compute_s + self.network_s + self.optimizer_s


def pace_of(model: ModelSizes, setup: Setup, speeds: Speeds) -> Pace:
    """Padding and surplus blocks are computed like everything else."""
    tokens = setup.batch.gradient_accumulation_steps * setup.tokens_per_micro_step
    flops = tokens * model.flops_per_token(setup.sequence_length)
    part = setup.partition(model.parameters) if setup.zero_stage else model.parameters
    moved = (
        2 * (FP32_BYTES + setup.moments_bytes) + FP32_BYTES
    ) * part  # master and moments read and written, the gradient read
    optimizer_s = moved / (
        min(speeds.host_bytes, speeds.memory_bytes) if setup.offload_optimizer else speeds.memory_bytes
    )
    if setup.offload_optimizer and setup.on_gpu:
        optimizer_s += (FP32_BYTES + setup.element_bytes) * part / speeds.host_bytes  # gradients down, weights up
    return Pace(
        compute_s=flops * slower_by(setup) / speeds.flops,
        optimizer_s=optimizer_s,
        network_s=traffic_of(model, setup).total_bytes / speeds.network_bytes,
    )


def slower_by(setup: Setup) -> float:
    """How much longer the device computes than for the model's own FLOPs: what is recomputed, and page faults of memory that was given back."""
    slower = RECOMPUTE if setup.activation_checkpointing else 1.0
    return slower if setup.on_gpu or setup.keeps_freed_memory else slower * GIVING_BACK
