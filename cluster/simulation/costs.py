"""What things take in a simulated run, in seconds. Data and closed forms: every number may be set; `SOURCES` says where each is from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from zerofleet.trainer.checkpoint.reader import FILES_AT_A_TIME

Tier = Literal["own memory", "buddy", "storage", "beginning"]
"""What an attempt starts from: the snapshots of its own nodes, one of them at least from another node, a checkpoint, nothing."""


@dataclass(frozen=True)
class Costs:
    """Bytes per second and seconds, unless the name says otherwise."""

    step_s: float = 10.0
    """One step with all nodes."""
    copy_gb_per_s: float = 5.4
    write_gb_per_s: float = 1.67
    storage_gb_per_s: float = 2000.0
    storage_requests_per_s: float = 100_000.0
    request_s: float = 0.02
    send_gb_per_s: float = 1.0
    slowdown: float = 1.034
    start_s: float = 0.45
    init_s_per_10k_ranks: float = 30.0
    rank_notice_s: float = 0.05
    node_notice_s: float = 12.7
    spare_s: float = 11.0
    repair_s: float = 24 * 3600.0
    open_s: float = 8.0e-4
    fragment_s: float = 7.4e-6
    file_s: float = 1.2e-5
    digest_s: float = 4.5e-7

    def stall_s(self, rank_bytes: float) -> float:
        """A snapshot: every rank copies its part."""
        return rank_bytes / (self.copy_gb_per_s * 1e9)

    def replica_s(self, node_bytes: float) -> float:
        return node_bytes / (self.send_gb_per_s * 1e9)

    def save_s(self, node_bytes: float, nodes: int, ranks: int, fragments: int) -> float:
        """From the snapshot to the manifest: all nodes write at a time, then the driver takes in a file per rank, with a digest per fragment."""
        writing = max(node_bytes / self.write_gb_per_s, nodes * node_bytes / self.storage_gb_per_s) / 1e9
        return writing + self.fan_in_s(ranks, fragments) + self.request_s

    def fan_in_s(self, ranks: int, fragments: int) -> float:
        """The driver's work for one commit."""
        return ranks * self.file_s + fragments * self.digest_s

    def select_s(self, ranks: int) -> float:
        """The driver checks the newest checkpoint before every attempt: size and header of every file, `FILES_AT_A_TIME`."""
        return 2 * math.ceil(ranks / FILES_AT_A_TIME) * self.request_s

    def begin_s(self, ranks: int) -> float:
        """From the fork to a process group and an engine."""
        return self.start_s + self.init_s_per_10k_ranks * ranks / 10_000

    def restore_s(self, tier: Tier, ranks: int, ranks_per_node: int, fragments: int, rank_bytes: float) -> float:
        """`fragments` of all ranks together: every rank reads the headers of all of them, whatever it needs."""
        if tier == "beginning":
            return 0.0
        table_s = fragments * self.fragment_s
        if tier == "storage":
            requests = 2 * ranks * ranks
            asking_s = max(self.select_s(ranks), requests / self.storage_requests_per_s)
            reading_s = max(
                rank_bytes * ranks_per_node / self.write_gb_per_s, rank_bytes * ranks / self.storage_gb_per_s
            )
            return table_s + asking_s + reading_s / 1e9
        # Each node's server answers every rank of the run for each of its own snapshots; a thread each, one interpreter.
        elsewhere = max(0, ranks - ranks_per_node)
        return table_s + elsewhere * ranks_per_node * self.open_s + rank_bytes / (self.copy_gb_per_s * 1e9)


_MEASURED = "measured, benchmarks/results/"
SOURCES: dict[str, str] = {
    "step_s": "assumed",
    "copy_gb_per_s": f"{_MEASURED}2026-11-22-checkpoint.md: 1.2 GB by two ranks stalled for 0.111 s (CPUs)",
    "write_gb_per_s": f"{_MEASURED}2026-11-22-checkpoint.md: 1.2 GB of a node durable after 0.72 s (one local disk)",
    "storage_gb_per_s": "Llama 3 (arXiv 2407.21783, 3.3.1): 2 TB/s sustained, of all nodes together",
    "storage_requests_per_s": "assumed, of all nodes together; S3 documents 5,500 reads per second and prefix",
    "request_s": "assumed: one small read of an object store or a busy file system",
    "send_gb_per_s": "assumed, per node, to its buddy",
    "slowdown": f"{_MEASURED}2026-11-22-checkpoint.md: a step beside a save over one without (two cores; a GPU's host has more)",
    "start_s": f"{_MEASURED}2026-11-22-recovery.md: fork, engine and state of a small model on two ranks",
    "init_s_per_10k_ranks": "Jiang et al. 2024, MegaScale (arXiv 2402.15627): under 30 s on more than 10,000 GPUs, under 5 s on 2,048, after their work on it",
    "rank_notice_s": f"{_MEASURED}2026-11-22-recovery.md",
    "node_notice_s": "measured once with Ray's own health checks (docs/roadmap.md)",
    "spare_s": "measured once: a cold node agent (docs/roadmap.md)",
    "repair_s": "assumed: until a broken node is a spare again",
    "open_s": f"{_MEASURED}2026-11-23-scale.md: a snapshot server and its client, one snapshot opened and its header read",
    "fragment_s": f"{_MEASURED}2026-11-23-scale.md: a rank's table of fragments, per entry",
    "file_s": f"{_MEASURED}2026-11-23-scale.md: the driver's work per rank file of a save",
    "digest_s": f"{_MEASURED}2026-11-23-scale.md: the same, per fragment in it",
}
