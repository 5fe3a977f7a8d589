"""Bytes that one rank sends per step, by closed forms.

Ring collectives: an all-reduce of n bytes sends 2 n (W - 1) / W per rank, a reduce-scatter or an all-gather n (W - 1) / W (Rajbhandari et
al. 2020, ZeRO, section 7.1: so stages 1 and 2 send as much as plain data parallel, 2 Psi, and stage 3 half as much again, 3 Psi). What DeepSpeed
0.19.8 does is not quite that: gradients travel in fp32 (`trainer/engine.py`), stages 1 and 2 reduce them by an all-reduce
(`use_multi_rank_bucket_allreduce`, on by default) and gather the weights afterwards, and from stage 2 on they travel in every micro-step, since nothing
but a partition of them is kept (https://www.deepspeed.ai/docs/config-json/#zero-optimizations-for-fp16-training).
"""

from __future__ import annotations

from dataclasses import dataclass

from zerofleet.trainer.sizing.memory import FP32_BYTES
from zerofleet.trainer.sizing.model import ModelSizes
from zerofleet.trainer.sizing.setup import Setup


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends per step."""

    gradients: int
    weights: int

    @property
    def total_bytes(self) -> int:
        return self.gradients + self.weights


def traffic_of(model: ModelSizes, setup: Setup) -> Traffic:
    """What a rank sends in one optimizer step; nothing in a world of one."""
    world, micro_steps = setup.world_size, setup.batch.gradient_accumulation_steps
    once = (world - 1) * model.parameters // world
    weights, gradients = setup.element_bytes * once, FP32_BYTES * once
    if setup.zero_stage == 0:
        return Traffic(2 * gradients, 0)
    if setup.zero_stage == 1:
        return Traffic(2 * gradients, weights)
    if setup.zero_stage == 2:
        return Traffic(2 * gradients * micro_steps, weights)
    return Traffic(gradients * micro_steps, 2 * weights * micro_steps)  # gathered for the forward and for the backward
