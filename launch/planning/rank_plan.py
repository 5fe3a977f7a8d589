"""What a rank is planned to take, as the run's record keeps it: the report compares it with what the ranks took."""

from __future__ import annotations

from typing import Any

from zerofleet.launch.config import JobConfig
from zerofleet.launch.planning.model_shape import planned_by_closed_form
from zerofleet.launch.planning.node_profile import this_machine
from zerofleet.trainer.sizing.node import footprint
from zerofleet.trainer.sizing.setup import Setup


def rank_plan(job: JobConfig) -> dict[str, Any]:
    """Data of a `plan` event. Of a rank at its peak: `memory_bytes` of the host that are its own, on a GPU `device_bytes` that are allocated there,
    `parts` of the highest moment by what holds them, and that `moment`; `ranks` in all. Empty where the model is not known without torch."""
    if job.silos is not None or (model := planned_by_closed_form(job)) is None:
        return {}
    cluster = job.cluster
    setup = Setup.of(job.train_config(), cluster.nodes, cluster.ranks_per_node, cluster.gpus_per_rank > 0)
    found = footprint(model.sizes, setup, this_machine(job), job.checkpoint.snapshot_interval_steps != 0)
    own = found.host["ranks"] + found.host.get("offloaded states", 0)
    peak = found.memory.peak
    return {
        "memory_bytes": own // setup.ranks_per_node,
        **({"device_bytes": peak.total_bytes} if setup.on_gpu else {}),
        "parts": dict(peak.parts),
        "moment": peak.name,
        "ranks": setup.nodes * setup.ranks_per_node,
    }
