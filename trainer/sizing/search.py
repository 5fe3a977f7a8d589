"""Which settings to train with: the quickest that fit, and when none do, the nearest change that makes some fit. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from zerofleet.trainer.config import MomentsPrecision
from zerofleet.trainer.sizing.model import ModelSizes
from zerofleet.trainer.sizing.node import Footprint, Node, footprint
from zerofleet.trainer.sizing.pace import Speeds, pace_of
from zerofleet.trainer.sizing.setup import LARGEST_BETA2, Setup

MOST_NODES = 4096
"""Where the search for more nodes ends."""
SMALL_BUCKET = 20_000_000
"""Elements of gradients that travel together where memory is short; DeepSpeed's own advice is 2e8 to 5e8 on GPUs."""
SMALL_SUB_GROUP = 50_000_000
LEAST_MOMENTS: MomentsPrecision = "bf16"
ALIKE = 1.03
"""Settings whose steps differ by less are taken for equally quick: then the fewest changes win."""
TYPICAL_GPU = Speeds(flops=150e12, memory_bytes=1.5e12, network_bytes=25e9)
TYPICAL_CPU = Speeds(flops=60e9, memory_bytes=5e9, network_bytes=1e9)
"""For the order of settings where the hardware's own speeds are not known; no seconds are told from them."""
FULL_TOKENS_GPU, FULL_TOKENS_CPU = 1024, 64
"""Tokens of a micro-step that half of the attainable speed is reached with: a rule of thumb."""


@dataclass(frozen=True)
class Choice:
    """Settings and what they take."""

    footprint: Footprint
    takes_snapshots: bool
    step_s: float
    """For comparing only."""

    @property
    def setup(self) -> Setup:
        return self.footprint.setup


@dataclass(frozen=True)
class Remedy:
    """The nearest things that fit, each on its own; None where there is none."""

    more_nodes: Choice | None
    """The fewest nodes of the same kind."""
    larger_node_bytes: int | None
    """Memory that a node needs for the settings that take least."""
    larger_gpu_bytes: int | None
    """Memory that a GPU needs for them."""
    shorter: Choice | None
    """The longest sequence, in steps of powers of two, on the same nodes."""


def relative_step_s(model: ModelSizes, setup: Setup, node: Node) -> float:
    """Seconds of a step, for comparing settings: small micro-steps reach less of a device's speed."""
    speeds = node.speeds or (TYPICAL_GPU if setup.on_gpu else TYPICAL_CPU)
    pace = pace_of(model, setup, speeds)
    half = FULL_TOKENS_GPU if setup.on_gpu else FULL_TOKENS_CPU
    return pace.step_s + pace.compute_s * half / setup.tokens_per_micro_step


def candidates(setup: Setup) -> Iterator[Setup]:
    """Settings that train the same: stage, micro-batch, checkpointing, offload, buckets, allocator, attention kernel. The job's own come first."""
    yield setup
    stages = (0, 1, 2, 3) if setup.world_size > 1 else (0, 1)
    for stage in stages:
        if stage == 3 and setup.compiles:
            continue
        for micro in _micro_batches(setup):
            for checkpointing in (False, True):
                varied = replace(
                    setup,
                    zero_stage=stage,
                    micro_batch_size=micro,
                    activation_checkpointing=checkpointing,
                    offload_optimizer=False,
                    offload_param=False,
                    overlap_comm=stage == 3,
                )
                for offloaded in _offloads(varied):
                    for bucketed in _buckets(offloaded):
                        for kept in _allocators(bucketed):
                            yield from _attentions(kept)


def _micro_batches(setup: Setup) -> list[int]:
    most = max(1, -(-setup.global_batch_size // setup.world_size))
    powers = {2**n for n in range(most.bit_length()) if setup.least_micro_batch <= 2**n <= most}
    return sorted({setup.micro_batch_size, *powers})


def _offloads(setup: Setup) -> Iterator[Setup]:
    yield setup
    if setup.on_gpu and setup.zero_stage and setup.moments_precision == "fp32":
        yield replace(setup, offload_optimizer=True)
        if setup.zero_stage == 3:
            yield replace(setup, offload_optimizer=True, offload_param=True)


def _allocators(setup: Setup) -> Iterator[Setup]:
    yield setup
    if setup.keeps_freed_memory and not setup.on_gpu:
        yield replace(setup, keeps_freed_memory=False)


def _attentions(setup: Setup) -> Iterator[Setup]:
    """The kernel that keeps no scores, where `auto` has taken the other one."""
    yield setup
    if setup.asked_attention == "auto" and setup.attention == "eager":
        yield replace(setup, asked_attention="sdpa")


def _buckets(setup: Setup) -> Iterator[Setup]:
    yield setup
    if setup.zero_stage:
        small = replace(setup, reduce_bucket=min(SMALL_BUCKET, setup.reduce_bucket))
        yield small
        if setup.zero_stage == 3:
            yield replace(
                small,
                sub_group=min(SMALL_SUB_GROUP, setup.sub_group),
                prefetch_bucket=min(SMALL_BUCKET, setup.prefetch_bucket),
                max_live=min(SMALL_BUCKET, setup.max_live),
                max_reuse=min(SMALL_BUCKET, setup.max_reuse),
            )


def changes(before: Setup, after: Setup) -> dict[str, tuple[object, object]]:
    """Fields that differ, before and after."""
    return {name: (value, vars(after)[name]) for name, value in vars(before).items() if value != vars(after)[name]}


def recommend(model: ModelSizes, setup: Setup, node: Node, takes_snapshots: bool = True) -> Choice | None:
    """The quickest settings that fit on the job's nodes; among those alike the ones that change least. Without snapshots in memory only
    where nothing fits with them, and with 16-bit moments, which train a little otherwise, only where nothing fits without. None when nothing
    fits."""
    for moments, snapshots in product(_moments(setup), (True, False) if takes_snapshots else (False,)):
        choices = _choices(model, replace(setup, moments_precision=moments), node, snapshots)
        fitting = [choice for choice in choices if choice.footprint.fits]
        if fitting:
            quickest = min(choice.step_s for choice in fitting)
            alike = [choice for choice in fitting if choice.step_s <= ALIKE * quickest]
            return min(alike, key=lambda choice: (len(changes(setup, choice.setup)), choice.step_s))
    return None


def _moments(setup: Setup) -> tuple[MomentsPrecision, ...]:
    """As the job has them, and what takes less, where AdamW's second beta allows it. Not on GPUs, which have the offloaded optimizer for that."""
    if setup.on_gpu or setup.beta2 > LARGEST_BETA2:
        return (setup.moments_precision,)
    return tuple(dict.fromkeys((setup.moments_precision, LEAST_MOMENTS)))


def _choices(model: ModelSizes, setup: Setup, node: Node, snapshots: bool) -> Iterator[Choice]:
    for varied in candidates(setup):
        yield Choice(footprint(model, varied, node, snapshots), snapshots, relative_step_s(model, varied, node))


def nearest(model: ModelSizes, setup: Setup, node: Node, takes_snapshots: bool = True) -> Remedy:
    """What would make the job fit: more nodes, larger ones, or shorter sequences."""
    least = min(
        (
            footprint(model, varied, node, takes_snapshots=False)
            for varied in candidates(replace(setup, moments_precision=_moments(setup)[-1]))
        ),
        key=_excess,
    )
    needed = {shortage.what: shortage.needed_bytes for shortage in least.shortages}
    host = max((size for what, size in needed.items() if what.startswith("memory of a node")), default=None)
    return Remedy(
        more_nodes=_more_nodes(model, setup, node, takes_snapshots),
        larger_node_bytes=host,
        larger_gpu_bytes=needed.get("device memory of a rank"),
        shorter=_shorter(model, setup, node, takes_snapshots),
    )


def _excess(found: Footprint) -> float:
    """By how much the worst shortage is over its limit."""
    return max((shortage.needed_bytes / max(1, shortage.limit_bytes) for shortage in found.shortages), default=0.0)


def _more_nodes(model: ModelSizes, setup: Setup, node: Node, takes_snapshots: bool) -> Choice | None:
    """The fewest nodes with which something fits: doubled until it does, then halved between. No more ranks than sequences."""
    most = min(node.max_nodes or MOST_NODES, setup.global_batch_size // setup.ranks_per_node)

    def at(nodes: int) -> Choice | None:
        return recommend(model, replace(setup, nodes=nodes), node, takes_snapshots)

    low, high = setup.nodes, setup.nodes
    while at(high) is None:
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle) else (middle, high)
    return at(high)


def _shorter(model: ModelSizes, setup: Setup, node: Node, takes_snapshots: bool) -> Choice | None:
    length = 2 ** (setup.sequence_length - 1).bit_length() // 2
    while length >= 2:
        if found := recommend(model, replace(setup, sequence_length=length), node, takes_snapshots):
            return found
        length //= 2
    return None
