"""Bytes of a training state on equal nodes: what checkpoints, snapshots and buffers hold."""

from __future__ import annotations

from dataclasses import dataclass

from zerofleet.trainer.checkpoint.buffers import DESCRIPTION_ROOM_BYTES, Buffers
from zerofleet.trainer.config import MomentsPrecision, Precision

MOMENTS_BYTES: dict[MomentsPrecision, int] = {"fp32": 8, "bf16": 4}
"""AdamW's two, per parameter."""


@dataclass(frozen=True)
class StateSizes:
    """Bytes of a training state on `nodes` equal nodes."""

    parameters: int
    zero_stage: int
    precision: Precision
    nodes: int
    ranks_per_node: int
    moments_precision: MomentsPrecision = "fp32"

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint in storage, without its headers: fp32 masters and the moments, whatever the stage and precision."""
        return (4 + MOMENTS_BYTES[self.moments_precision]) * self.parameters

    @property
    def snapshot_bytes(self) -> int:
        """Of one step's snapshots on one node: every rank keeps its part of the state, at every stage."""
        return -(-self.checkpoint_bytes // self.nodes)

    @property
    def rank_bytes(self) -> int:
        """Weights, gradients and optimizer states of one rank, without activations (Rajbhandari et al. 2020, ZeRO, section 3). In fp32 the
        partitioned stages keep masters beside the weights (DeepSpeed 0.19.8)."""
        low, world = (4 if self.precision == "fp32" else 2), self.nodes * self.ranks_per_node
        masters = 4 if self.zero_stage or self.precision != "fp32" else 0
        gradient = low if self.zero_stage == 0 else 4
        weights = low / (world if self.zero_stage == 3 else 1)
        gradients = gradient / (world if self.zero_stage >= 2 else 1)
        optimizer = (masters + MOMENTS_BYTES[self.moments_precision]) / (world if self.zero_stage >= 1 else 1)
        return int(self.parameters * (weights + gradients + optimizer))

    def buffer_bytes(self, buffers: Buffers) -> int:
        """What `buffers` take of a node's /dev/shm."""
        rooms = DESCRIPTION_ROOM_BYTES * self.ranks_per_node
        return (buffers.own + buffers.replicas) * (self.snapshot_bytes + rooms)
