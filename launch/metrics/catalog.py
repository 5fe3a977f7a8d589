"""Every metric that a driver shows: name, kind, labels, meaning. Base units, as Prometheus wants them: seconds, bytes, ratios of 1.

The label `run` is on all of them. A step that a failure makes a run do again counts again in `_total`, since those never go down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "zerofleet_"

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class Metric:
    """`buckets` are upper bounds, in the metric's unit, the last one (+Inf) left out."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _bounds(least: float, count: int) -> tuple[float, ...]:
    """Each twice the one before."""
    return tuple(least * 2**number for number in range(count))


METRICS: tuple[Metric, ...] = (
    # -- the run
    Metric("run_info", "gauge", "Always 1; what the run is.", ("version", "zero_stage", "precision")),
    Metric("state", "gauge", "1 for the state that the run is in, 0 for all others.", ("state",)),
    Metric("state_age_seconds", "gauge", "Since the run entered its state."),
    # -- training
    Metric("step", "gauge", "Newest step that was finished."),
    Metric("planned_steps", "gauge", "Steps of the whole run."),
    Metric("steps_total", "counter", "Steps that were done, those that were done again included."),
    Metric("step_age_seconds", "gauge", "Since a rank last finished a step; since the driver began before the first."),
    Metric("step_duration_seconds", "histogram", "A step, from its data to its update.", buckets=_bounds(0.03125, 16)),
    Metric("tokens_total", "counter", "Tokens trained on, those of repeated steps included."),
    Metric("tokens_per_second", "gauge", "Over the last 20 steps, all between them included; 0 while none is running."),
    Metric("mfu_ratio", "gauge", "Model FLOP/s over the hardware's peak, mean of the last 20 steps."),
    Metric("loss", "gauge", "Training loss of the newest step."),
    Metric("heldout_loss", "gauge", "Loss of the newest evaluation."),
    Metric("learning_rate", "gauge", "Of the newest step."),
    Metric("grad_norm", "gauge", "Norm of the gradient of the newest step, before clipping."),
    # -- where the time goes
    Metric("time_seconds", "gauge", "Wall time of the run by the goodput ledger's label; all labels are all of it.", ("label",)),
    Metric("goodput_ratio", "gauge", "Counted steps x the newest steps' median / wall time, of the whole run."),
    # -- recovery
    Metric("attempts_total", "counter", "Lives of the ranks, the present one included, over all drivers."),
    Metric("verdicts_total", "counter", "Attempts that failed, by what did it and what was decided.", ("class", "action")),
    Metric("incidents_total", "counter", "What a user should know of, by kind.", ("class",)),
    Metric("nodes", "gauge", "Nodes with a rank that is alive."),
    Metric("nodes_wanted", "gauge", "Nodes that the job asks for."),
    Metric("ranks", "gauge", "Ranks that are alive."),
    Metric("ranks_wanted", "gauge", "Ranks that the job asks for."),
    Metric("stragglers", "gauge", "Ranks that are slower than the others now; the run's incidents name them."),
    Metric("quarantined_positions", "gauge", "Sample positions that are left out because they spoiled steps."),
    # -- what would be lost
    Metric("newest_step", "gauge", "Newest step that a whole copy of the state is of: in the nodes' own memory, in their buddies' memory, in storage.", ("tier",)),
    Metric("durable_age_seconds", "gauge", "Since a checkpoint last became durable under this driver, before the first since its first step; 0 before that and after the end."),
    Metric("storage_down_seconds", "gauge", "Since storage refuses what it is given; 0 while it takes it."),
    Metric("snapshot_duration_seconds", "histogram", "A snapshot to memory, of its slowest rank.", buckets=_bounds(0.0078125, 14)),
    Metric("snapshot_bytes", "gauge", "All ranks' parts of the newest snapshot."),
    Metric("checkpoint_duration_seconds", "histogram", "From the first rank file's beginning to the commit.", buckets=_bounds(0.125, 15)),
    Metric("checkpoint_bytes", "gauge", "The newest checkpoint that became durable."),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}
TIERS = ("memory", "buddy", "storage")
INCIDENTS = ("checkpoint", "data", "hang", "memory", "metrics", "node", "other", "silo", "storage", "straggler", "tracking")  # fmt: skip
"""Kinds that are there from the start with 0, so that the first incident is an increase."""


def series_names() -> set[str]:
    """Every name that a query may use."""
    names = set()
    for metric in METRICS:
        suffixes = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        names |= {f"{PREFIX}{metric.name}{suffix}" for suffix in suffixes}
    return names
