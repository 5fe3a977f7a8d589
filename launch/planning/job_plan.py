"""A job's plan: what it takes of a node, whether that fits, what would be quicker, and how long and dear it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zerofleet.launch.config import JobConfig
from zerofleet.launch.planning.model_shape import PlannedModel
from zerofleet.launch.planning.speed import speed_choices
from zerofleet.trainer.sizing.node import Footprint, Node, footprint
from zerofleet.trainer.sizing.pace import Pace, pace_of
from zerofleet.trainer.sizing.search import Choice, Remedy, changes, nearest, recommend
from zerofleet.trainer.sizing.setup import Setup
from zerofleet.trainer.sizing.state import StateSizes
from zerofleet.trainer.sizing.traffic import Traffic, traffic_of

EXPORT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

_SETTINGS = {
    "zero_stage": "train.zero_stage",
    "micro_batch_size": "train.micro_batch_size",
    "activation_checkpointing": "train.activation_checkpointing",
    "sequence_length": "data.sequence_length",
    "nodes": "cluster.nodes",
    "reduce_bucket": "deepspeed.zero_optimization.reduce_bucket_size",
    "sub_group": "deepspeed.zero_optimization.sub_group_size",
    "max_live": "deepspeed.zero_optimization.stage3_max_live_parameters",
    "max_reuse": "deepspeed.zero_optimization.stage3_max_reuse_distance",
    "prefetch_bucket": "deepspeed.zero_optimization.stage3_prefetch_bucket_size",
    "moments_precision": "train.moments_precision",
    "keeps_freed_memory": "train.keep_freed_memory",
    "asked_attention": "model.attn_implementation",
    "offload_optimizer": "deepspeed.zero_optimization.offload_optimizer.device",
    "offload_param": "deepspeed.zero_optimization.offload_param.device",
}
"""Fields of a setup as a recipe names them; `overlap_comm` follows from the stage."""


@dataclass(frozen=True)
class JobPlan:
    """Everything that `plan` says, in values."""

    job: JobConfig
    model: PlannedModel
    node: Node
    footprint: Footprint
    traffic: Traffic
    pace: Pace | None
    choice: Choice | None
    """What is recommended; None when nothing fits."""
    remedy: Remedy | None
    """Where nothing fits."""

    @property
    def sizes(self) -> StateSizes:
        setup = self.footprint.setup
        return StateSizes(
            self.model.sizes.parameters,
            setup.zero_stage,
            setup.precision,
            setup.nodes,
            setup.ranks_per_node,
            setup.moments_precision,
        )

    @property
    def disk_bytes(self) -> int:
        """Of the run folder in storage: the checkpoints that are kept, the one that is written, the export."""
        checkpoint, steps = self.job.checkpoint, self.job.train.steps
        kept = checkpoint.keep_last + 1
        if every := checkpoint.keep_every_steps:
            kept += steps // every
        # With `auto`, or by the clock, nobody knows how many will come.
        if isinstance(checkpoint.interval_steps, int) and not checkpoint.interval_s:
            kept = min(kept, 1 + (steps // checkpoint.interval_steps if checkpoint.interval_steps else 0))
        export = EXPORT_BYTES[self.job.checkpoint.export_dtype] if self.job.checkpoint.export else 0
        return kept * self.sizes.checkpoint_bytes + export * self.model.sizes.parameters

    @property
    def write_s(self) -> float | None:
        """Seconds in which every node writes its part of a checkpoint; None when nobody says how fast."""
        rate = self.node.write_bytes_per_s
        return None if rate is None else self.sizes.snapshot_bytes / rate

    @property
    def price(self) -> float | None:
        """Of all nodes, per hour."""
        return None if self.node.price_per_hour is None else self.node.price_per_hour * self.footprint.setup.nodes

    @property
    def fits(self) -> bool:
        return self.footprint.fits and not self.troubles

    @property
    def troubles(self) -> list[str]:
        """What does not fit besides memory, each with its numbers and the remedy."""
        cluster, node, found = self.job.cluster, self.node, []
        if (cpus := cluster.ranks_per_node * cluster.cpus_per_rank) > node.cpus:
            found.append(
                f"Cores of a node: cluster.ranks_per_node={cluster.ranks_per_node} with cluster.cpus_per_rank={cluster.cpus_per_rank:g} take "
                f"{cpus:g} and {node.name} has {node.cpus:g}: lower one of them"
            )
        if node.disk_bytes is not None and self.disk_bytes > node.disk_bytes:
            found.append(
                f"Disk: checkpoints and export take {self.disk_bytes / 2**30:,.1f} GiB and {self.job.run.storage} has {node.disk_bytes / 2**30:,.1f} "
                "GiB free: lower checkpoint.keep_last, set checkpoint.export=false, or choose another run.storage"
            )
        return found

    @property
    def changes(self) -> list[str]:
        """What is recommended, as overrides of the recipe; empty when the recipe is as good."""
        return [] if self.choice is None else overrides(self.footprint.setup, self.choice, _takes_snapshots(self.job))

    @property
    def remedies(self) -> list[str]:
        """The nearest things that fit, in words; empty where something fits as it is, or nothing near does."""
        return [] if self.remedy is None else _remedies(self.footprint.setup, self.remedy, _takes_snapshots(self.job))

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: bytes, seconds and settings."""
        memory, setup = self.footprint.memory, self.footprint.setup
        return {
            "fits": self.fits,
            "troubles": self.troubles,
            "shortages": [asdict(shortage) for shortage in self.footprint.shortages],
            "node": asdict(self.node),
            "setup": asdict(setup),
            "model": {**asdict(self.model.sizes), "source": self.model.source},
            "rank": {
                "moments": {moment.name: moment.parts for moment in memory.moments},
                "peak": memory.peak.name,
                "device": self.footprint.device,
                "offloaded": memory.offloaded,
                "bytes": self.footprint.bytes_per_rank,
            },
            "host": self.footprint.host,
            "host_bytes": self.footprint.host_bytes,
            "load_bytes": self.footprint.load_bytes,
            "snapshots": asdict(self.footprint.buffers),
            "disk_bytes": self.disk_bytes,
            "checkpoint_bytes": self.sizes.checkpoint_bytes,
            "write_s": self.write_s,
            "traffic": asdict(self.traffic),
            "step_s": None
            if self.pace is None
            else asdict(self.pace) | {"bound_s": self.pace.bound_s, "step_s": self.pace.step_s},
            "speed": [asdict(each) for each in speed_choices(self.job, self.model.sizes, setup)],
            "price_per_hour": self.price,
            "recommended": None if self.choice is None else self.changes,
            "nearest": None if self.remedy is None else self.remedies,
        }


def plan_job(job: JobConfig, model: PlannedModel, node: Node) -> JobPlan:
    """Pure."""
    setup = Setup.of(job.train_config(), job.cluster.nodes, job.cluster.ranks_per_node, job.cluster.gpus_per_rank > 0)
    snapshots = _takes_snapshots(job)
    choice = recommend(model.sizes, setup, node, snapshots)
    return JobPlan(
        job=job,
        model=model,
        node=node,
        footprint=footprint(model.sizes, setup, node, snapshots),
        traffic=traffic_of(model.sizes, setup),
        pace=None if node.speeds is None else pace_of(model.sizes, setup, node.speeds),
        choice=choice,
        remedy=None if choice else nearest(model.sizes, setup, node, snapshots),
    )


def _takes_snapshots(job: JobConfig) -> bool:
    return job.checkpoint.snapshot_interval_steps != 0


def overrides(before: Setup, choice: Choice, takes_snapshots: bool) -> list[str]:
    """`key=value` for every setting that differs."""
    found = []
    for name, (_, value) in changes(before, choice.setup).items():
        if name in _SETTINGS:
            found.append(f"{_SETTINGS[name]}={_as_text(name, value)}")
    if takes_snapshots and not choice.takes_snapshots:
        found.append("checkpoint.snapshot_interval_steps=0")
    return found


def _as_text(name: str, value: object) -> str:
    if name.startswith("offload"):
        return "cpu" if value else "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _remedies(before: Setup, remedy: Remedy, takes_snapshots: bool) -> list[str]:
    found = []
    if remedy.more_nodes is not None:
        nodes = remedy.more_nodes.setup.nodes
        found.append(f"{nodes} such nodes: {' '.join(overrides(before, remedy.more_nodes, takes_snapshots))}")
    sizes = [
        f"{size / 2**30:.0f} GiB of {what}"
        for what, size in (("memory", remedy.larger_node_bytes), ("GPU memory", remedy.larger_gpu_bytes))
        if size
    ]
    if sizes:
        found.append(f"a node with {' and '.join(sizes)}")
    if remedy.shorter is not None:
        found.append(f"shorter sequences: {' '.join(overrides(before, remedy.shorter, takes_snapshots))}")
    return found
