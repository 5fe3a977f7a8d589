"""What is simulated: the run, its hardware and its luck, and what follows from the numbers alone."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.policy.sizing import Sizes
from zerofleet.cluster.simulation.costs import Costs
from zerofleet.cluster.simulation.failures import RATES, FailureRates
from zerofleet.trainer.checkpoint.cadence import WRITE_SHARE, daly_interval_s
from zerofleet.trainer.checkpoint.format import BLOCK_BYTES, Manifest, RankFile, Scalars
from zerofleet.trainer.checkpoint.fragments import MASTER, Tensor
from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.run_folder import CheckpointId
from zerofleet.trainer.sizing.model import ModelSizes
from zerofleet.trainer.sizing.state import StateSizes

KINDS = (MASTER, "exp_avg", "exp_avg_sq")
TENSORS_PER_LAYER, TENSORS_OUTSIDE = 9, 3
"""Of a Llama: four projections of attention, three of the MLP, two norms; the embedding, the last norm, the head."""
FRAGMENT_HEADER_BYTES = 115
"""Of a rank file's header, per fragment: its label, dtype, length and offsets."""


@dataclass(frozen=True)
class Scenario:
    """Weak scaling: the global batch grows with the ranks, `micro_steps` blocks for each."""

    model: ModelSizes
    zero_stage: int
    gpus: int
    ranks_per_node: int = 8
    micro_steps: int = 4
    days: float = 7.0
    seed: int = 0
    spares: int = 1
    """Nodes beyond the run's own that can take the place of a lost one."""
    nodes_per_rack: int = 2
    knows_racks: bool = False
    """Whether buddies are planned by racks, as they would be if nodes had labels of them; today they have not."""
    rates: FailureRates = RATES["llama3"]
    costs: Costs = field(default_factory=Costs)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(interval_steps="auto"))
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def nodes(self) -> int:
        return self.gpus // self.ranks_per_node

    @cached_property
    def cluster_config(self) -> ClusterConfig:
        """The recipe's, for so many nodes, any number of which may be missing as long as half of them are there."""
        least = self.cluster.min_nodes or max(1, self.nodes // 2)
        return self.cluster.model_copy(
            update={"nodes": self.nodes, "ranks_per_node": self.ranks_per_node, "min_nodes": min(least, self.nodes)}
        )

    @property
    def sizes(self) -> Sizes:
        config = self.cluster_config
        return Sizes(
            min_nodes=config.min_nodes,
            max_nodes=self.nodes,
            ranks_per_node=self.ranks_per_node,
            global_batch_size=self.micro_steps * self.gpus,
            micro_batch_size=1,
            grace_s=config.replace_timeout_s,
            placement_timeout_s=config.placement_timeout_s,
        )

    @property
    def num_tensors(self) -> int:
        return TENSORS_PER_LAYER * self.model.num_layers + TENSORS_OUTSIDE

    def state(self, nodes: int) -> StateSizes:
        return StateSizes(self.model.parameters, self.zero_stage, "bf16", nodes, self.ranks_per_node)

    def fragments(self, ranks: int) -> int:
        """Of a whole checkpoint. Stages 0 and 3 cut every tensor among all ranks; stages 1 and 2 cut one long row of them."""
        per_kind = self.num_tensors * ranks if self.zero_stage in (0, 3) else self.num_tensors + ranks
        return len(KINDS) * per_kind

    def step_s(self, nodes: int) -> float:
        """With fewer nodes every rank has more micro-steps."""
        return self.costs.step_s * self.sizes.micro_steps(nodes) / self.sizes.micro_steps(self.nodes)


def manifest_bytes(scenario: Scenario) -> int:
    """Of a manifest with as many rank files and tensors, by writing one."""
    file_bytes = scenario.model.parameters * 4 * len(KINDS) // scenario.gpus
    names = [f"model.layers.{n}.post_attention_layernorm.weight" for n in range(scenario.num_tensors)]
    tensors = {
        name: Tensor((scenario.model.hidden, scenario.model.hidden), dict.fromkeys(KINDS, "F32")) for name in names
    }
    blocks, hash_ = ["0" * 32] * math.ceil(file_bytes / BLOCK_BYTES), "0" * 32
    where = CheckpointId(100_000, 10)
    files = [
        RankFile(where.rank_file(rank, scenario.gpus).rpartition("/")[2], file_bytes, 4096, hash_, blocks)
        for rank in range(scenario.gpus)
    ]
    manifest = Manifest(
        step=where.step,
        attempt=where.attempt,
        silo=where.silo,
        world_size=scenario.gpus,
        zero_stage=scenario.zero_stage,
        precision="bf16",
        position=10**9,
        quarantine=[],
        scalars=Scalars([where.step]),
        tensors=tensors,
        digests={f"{kind}/{name}": "0" * 16 for kind in KINDS for name in names},
        rank_files=files,
        fingerprints=dict.fromkeys(("data", "tokenizer", "model", "job"), hash_),
        versions=dict.fromkeys(("torch", "deepspeed", "transformers", "zerofleet"), "0.0.0"),
        created_at=1.0e9,
    )
    return len(manifest.to_bytes())


def closed_forms(scenario: Scenario) -> dict[str, Any]:
    """What needs no simulation. Bytes and seconds."""
    costs, state, ranks = scenario.costs, scenario.state(scenario.nodes), scenario.gpus
    rank_bytes, node_bytes = state.checkpoint_bytes / ranks, state.snapshot_bytes
    fragments, mtbf_s = scenario.fragments(ranks), scenario.rates.mtbf_s(ranks)
    save_s = costs.save_s(node_bytes, scenario.nodes, ranks, fragments)
    interval_s = daly_interval_s(costs.stall_s(rank_bytes) + WRITE_SHARE * save_s, mtbf_s)
    restart = (ranks, scenario.ranks_per_node, fragments, rank_bytes)
    return {
        "mtbf_s": mtbf_s,
        "checkpoint_bytes": state.checkpoint_bytes,
        "rank_bytes": rank_bytes,
        "manifest_bytes": manifest_bytes(scenario),
        "header_bytes": fragments * FRAGMENT_HEADER_BYTES,
        "fragments": fragments,
        "commit_events": ranks,
        "commit_fan_in_s": costs.fan_in_s(ranks, fragments),
        "save_s": save_s,
        "daly_interval_s": interval_s,
        "storage_bytes_per_s": state.checkpoint_bytes / max(interval_s, save_s),
        "storage_peak_bytes_per_s": min(scenario.nodes * costs.write_gb_per_s, costs.storage_gb_per_s) * 1e9,
        "buddy_bytes_per_snapshot_and_node": node_bytes if scenario.nodes > 1 else 0,
        "select_s": costs.select_s(ranks),
        "begin_s": costs.begin_s(ranks),
        "restore_s": {tier: costs.restore_s(tier, *restart) for tier in ("own memory", "storage")},
        "connections_per_rank": max(0, ranks - scenario.ranks_per_node),
        "connections_per_node_server": max(0, ranks - scenario.ranks_per_node) * scenario.ranks_per_node,
        "requests_from_storage": 2 * ranks * ranks,
    }


def described(scenario: Scenario) -> dict[str, Any]:
    """For JSON."""
    fields = asdict(replace(scenario, checkpoint=CheckpointConfig(), cluster=ClusterConfig()))
    fields |= {"checkpoint": scenario.checkpoint.model_dump(), "cluster": scenario.cluster_config.model_dump()}
    return json.loads(json.dumps(fields))  # type: ignore[no-any-return]
