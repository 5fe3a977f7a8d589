"""The settings of a job that its memory, traffic and time depend on: plain values, so that a search can vary them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import MomentsPrecision, Precision, TrainConfig
from zerofleet.trainer.sizing.state import MOMENTS_BYTES

LARGEST_BETA2 = 0.98
"""With bf16 moments. A step that would move one by less than 0.2 to 0.4 % is rounded away, so that for constant gradients the second moment stops
within 0.2 to 0.4 % / (1 - beta2) of their square: 4 to 8 % at 0.95, 10 to 20 % at 0.98, never near it at 0.999. Noise mends the most of it."""
CPU_REDUCE_BUCKET_ELEMENTS = 20_000_000
"""What CPU ranks take instead of DeepSpeed's 500 million (trainer/engine.py). A bucket of 2 GB that is mostly never written to costs nothing by
itself, but it is asked for anew in every micro-step, always in another place of a heap that keeps what was freed: ranks with 77 M parameters took
2.3 to 4.2 GB where 1.5 GB were in use."""
REDUCE_BUCKET_ELEMENTS = 500_000_000
SUB_GROUP_ELEMENTS = 1_000_000_000
PREFETCH_BUCKET_ELEMENTS = 50_000_000
MAX_LIVE_ELEMENTS = 1_000_000_000
PERSISTENT_ELEMENTS = 100_000
"""DeepSpeed's defaults (https://www.deepspeed.ai/docs/config-json/#zero-optimizations-for-fp16-training): the gradient bucket, the
part of a stage-3 state that is updated at once, what is gathered ahead, how much may be gathered at a time, and up to which size a
tensor is not partitioned at all."""


EAGER_TOKENS = 512
"""The longest sequences for which attention as plain matmuls is taken: what it keeps grows with their square (docs/speed.md)."""

Attention = Literal["sdpa", "eager", "flash_attention_2"]
AskedAttention = Literal["auto", "sdpa", "eager", "flash_attention_2"]


def attention_of(config: TrainConfig, on_gpu: bool) -> Attention:
    """The kernel of `model.attn_implementation`. `auto` is torch's fused one, but for short sequences in bf16 on CPUs: there the fused one multiplies
    in fp32, and plain matmuls use the processor's own bf16 (benchmarks/results/2026-11-23-speed.md)."""
    return _chosen(config.model.attn_implementation, config.data.sequence_length, config.train.precision, on_gpu)


def _chosen(asked: AskedAttention, sequence_length: int, precision: Precision, on_gpu: bool) -> Attention:
    if asked != "auto":
        return asked
    return "eager" if not on_gpu and sequence_length <= EAGER_TOKENS and precision == "bf16" else "sdpa"


@dataclass(frozen=True)
class Setup:
    """How a model is trained."""

    zero_stage: int
    precision: Precision
    micro_batch_size: int
    sequence_length: int
    global_batch_size: int
    nodes: int
    ranks_per_node: int
    on_gpu: bool
    activation_checkpointing: bool = False
    offload_optimizer: bool = False
    """Optimizer states and the optimizer's step in host memory."""
    offload_param: bool = False
    """Stage 3's partitions of the weights in host memory."""
    reduce_bucket: int = REDUCE_BUCKET_ELEMENTS
    """Elements of gradients that travel together."""
    sub_group: int = SUB_GROUP_ELEMENTS
    """Elements of a stage-3 partition that are updated at once."""
    prefetch_bucket: int = PREFETCH_BUCKET_ELEMENTS
    """Elements of stage-3 weights that are gathered ahead."""
    max_live: int = MAX_LIVE_ELEMENTS
    """Elements of stage-3 weights up to which more are gathered ahead: `stage3_max_live_parameters`."""
    max_reuse: int = MAX_LIVE_ELEMENTS
    """Weights that are used again within so many elements stay gathered: `stage3_max_reuse_distance`."""
    overlap_comm: bool = False
    """Gradients travel beside the backward: a second bucket."""
    moments_precision: MomentsPrecision = "fp32"
    """Of AdamW's."""
    keeps_freed_memory: bool = True
    """On a CPU: what is freed stays with the rank (trainer/allocator.py)."""
    asked_attention: AskedAttention = "sdpa"
    """As the recipe says."""
    compiles: bool = False
    """train.compile, which stage 3 is not for."""
    least_micro_batch: int = 1
    """That the recipe takes: `train.min_micro_batch_size` may not exceed the size."""
    beta2: float = 0.95
    """Of AdamW's: bf16 moments are not for all."""

    @staticmethod
    def of(config: TrainConfig, nodes: int, ranks_per_node: int, on_gpu: bool) -> Setup:
        """A job's own settings, DeepSpeed's defaults where its section is silent."""
        train, zero = config.train, section(config.deepspeed, "zero_optimization")
        overlap = zero.get("overlap_comm")
        return Setup(
            zero_stage=train.zero_stage,
            precision=train.precision,
            micro_batch_size=train.micro_batch_size,
            sequence_length=config.data.sequence_length,
            global_batch_size=train.global_batch_size,
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            on_gpu=on_gpu,
            activation_checkpointing=train.activation_checkpointing,
            offload_optimizer=_is_offloaded(zero, "offload_optimizer"),
            offload_param=_is_offloaded(zero, "offload_param"),
            reduce_bucket=_elements(
                zero, "reduce_bucket_size", REDUCE_BUCKET_ELEMENTS if on_gpu else CPU_REDUCE_BUCKET_ELEMENTS
            ),
            sub_group=_elements(zero, "sub_group_size", SUB_GROUP_ELEMENTS),
            prefetch_bucket=_elements(zero, "stage3_prefetch_bucket_size", PREFETCH_BUCKET_ELEMENTS),
            max_live=_elements(zero, "stage3_max_live_parameters", MAX_LIVE_ELEMENTS),
            max_reuse=_elements(zero, "stage3_max_reuse_distance", MAX_LIVE_ELEMENTS),
            overlap_comm=train.zero_stage == 3 if overlap is None else bool(overlap),
            moments_precision=train.moments_precision,
            keeps_freed_memory=train.keep_freed_memory,
            asked_attention=config.model.attn_implementation,
            compiles=train.compile,
            least_micro_batch=train.min_micro_batch_size or 1,
            beta2=train.betas[1],
        )

    @property
    def attention(self) -> Attention:
        """Whether scores lie in memory (`eager`) or never do."""
        return _chosen(self.asked_attention, self.sequence_length, self.precision, self.on_gpu)

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def batch(self) -> BatchPlan:
        return BatchPlan.of(self.global_batch_size, self.micro_batch_size, self.world_size)

    @property
    def tokens_per_micro_step(self) -> int:
        """Of one rank, padding included."""
        return self.micro_batch_size * self.sequence_length

    @property
    def element_bytes(self) -> int:
        """Of weights and activations."""
        return 4 if self.precision == "fp32" else 2

    @property
    def moments_bytes(self) -> int:
        """Of both, per parameter."""
        return MOMENTS_BYTES[self.moments_precision]

    def partition(self, elements: int) -> int:
        """A rank's part of so many elements."""
        return math.ceil(elements / self.world_size)


def section(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    """A section of DeepSpeed's config; empty where it is left out."""
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _is_offloaded(zero: dict[str, Any], key: str) -> bool:
    return bool(section(zero, key).get("device", "none") != "none")


def _elements(zero: dict[str, Any], key: str, default: int) -> int:
    return int(zero.get(key, default))
