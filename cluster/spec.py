"""What travels from the controller to node agents, zygotes and ranks. Plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from zerofleet.trainer.checkpoint.remote import Holder, Peer
from zerofleet.trainer.checkpoint.snapshot import REPLICAS, SnapshotMeta
from zerofleet.trainer.run_folder import CheckpointId
from zerofleet.trainer.world import World

TRAIN, CHECK = "zerofleet.trainer.loop:train", "zerofleet.cluster.tasks:check"
"""Functions that every rank of a world runs: (config, world, cache_path, report, control, fault, snapshots)."""
PRELOAD = "zerofleet.cluster.preload:preload"
"""The function that a zygote runs once, before it forks: (model_type)."""


@dataclass(frozen=True)
class JobSpec:
    """What stays the same over a run's attempts."""

    run: str
    config_json: str
    """The TrainConfig."""
    cache_path: str
    """Prepared data; the same path on every node."""
    target: str = TRAIN
    faults: str = ""
    """Injected faults, as faults.parse_faults reads them."""
    threads_per_rank: int = 1
    bind_cores: bool = False
    """Whether each rank keeps to as many cores of its own."""
    outer: str = ""
    """Of a silo: where its ranks reach the outer server (trainer/silos/wire.py)."""


@dataclass(frozen=True)
class NodeSpec:
    """What a node agent needs before the first attempt."""

    run: str
    node_rank: int
    accelerator: str
    """DeepSpeed's name for it: cpu or cuda."""
    log_folder: str | None
    """The run folder's logs/, when storage is a local path."""
    storage_url: str
    """The run folder: logs go there when there is no `log_folder`."""
    namespace: str = ""
    """Of the run's actors in Ray: no other run on the cluster has it, whatever its name."""
    model_type: str = ""
    """transformers' name of the architecture, so that the zygote imports its module."""
    preload: str = PRELOAD
    snapshots: str = ""
    """Folder of the ranks' snapshots, in memory; empty: none are taken."""
    address: str = ""
    """The node's own, by which others reach it; empty: nobody else has to."""
    secret: str = ""
    """Of the group, for what its nodes tell each other; empty: the node is alone, and serves its snapshots to nobody."""
    early_zygote: str = ""
    """Path at which a zygote waits that was started before the agent."""
    lease_s: float = 60.0
    """Seconds without a poll after which the ranks are killed: their driver is gone."""


@dataclass(frozen=True)
class SnapshotInfo:
    """A complete snapshot that an agent holds."""

    node_rank: int
    path: str
    meta: SnapshotMeta
    """Without the draft and the events."""
    peer: Peer | None = None
    """Who serves it to other nodes."""


def one_per_rank(held: Sequence[SnapshotInfo], checkpoint: CheckpointId) -> list[SnapshotInfo]:
    """Of the snapshots of a step one for each rank, its own node's rather than a buddy's."""
    chosen: dict[int, SnapshotInfo] = {}
    for info in sorted(held, key=lambda info: (Path(info.path).parent.name == REPLICAS, info.node_rank)):
        if info.meta.checkpoint == checkpoint:
            chosen.setdefault(info.meta.rank, info)
    return list(chosen.values())


@dataclass(frozen=True)
class AttemptSpec:
    """The ranks of one attempt on one node."""

    job: JobSpec
    attempt: int
    worlds: tuple[World, ...]
    log_name: str
    """Logs are called <this>-00000.log."""
    master_addr: str
    master_port: int
    holders: tuple[Holder, ...] = ()
    """Where the snapshots are that the attempt starts from."""
    buddy: Peer | None = None
    """The node that keeps a copy of this one's snapshots."""


@dataclass(frozen=True)
class RankSpec:
    """One rank, as its zygote is asked to fork it. The rank's socket travels beside it."""

    job: JobSpec
    world: World
    environment: dict[str, str]
    log: str
    """Path that stdout and stderr go to."""
    snapshots: str = ""
    """Folder of the node's snapshots."""
    ranks_of_node: int = 1

    def to_json(self) -> str:
        return json.dumps({"op": "fork", **asdict(self)})

    @staticmethod
    def from_fields(fields: dict[str, object]) -> RankSpec:
        job, world = fields["job"], fields["world"]
        environment, log, snapshots = fields["environment"], fields["log"], fields["snapshots"]
        ranks_of_node = fields["ranks_of_node"]
        assert isinstance(job, dict) and isinstance(world, dict) and isinstance(environment, dict)
        assert isinstance(ranks_of_node, int)
        return RankSpec(JobSpec(**job), World(**world), environment, str(log), str(snapshots), ranks_of_node)
