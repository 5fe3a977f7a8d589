"""Pre-flight of a node: is it fit to run ranks? Findings name the node, so that the bad one of a thousand is known."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from zerofleet.cluster.host import memory_bytes, visible_gpus
from zerofleet.cluster.spec import NodeSpec
from zerofleet.trainer.checkpoint.remote import Peer
from zerofleet.trainer.node_name import node_name

PACKAGES = ("torch", "deepspeed", "transformers", "ray")
"""What must have the same version on all nodes."""
_LEAST_SHM_BYTES = 64 * 2**20
_LEAST_DISK_BYTES = 2**30


@dataclass(frozen=True)
class NodeFinding:
    """What is wrong with a node; an `error` keeps the run from starting."""

    level: Literal["error", "warning"]
    node: str
    message: str

    def __str__(self) -> str:
        return f"node {self.node}: {self.message}"


@dataclass(frozen=True)
class NodeReport:
    """What a node is."""

    node: str
    pid: int
    versions: dict[str, str]
    num_gpus: int
    memory_bytes: int
    findings: tuple[NodeFinding, ...]
    peer: Peer | None = None
    """Where other nodes reach its snapshots."""


def inspect_node(spec: NodeSpec, cache_path: str) -> NodeReport:
    """Looks at this node. Takes milliseconds: what needs torch is checked by the ranks themselves."""
    node = node_name()
    problems: list[tuple[Literal["error", "warning"], str]] = []
    if not Path(cache_path).is_dir():
        remedy = "set data.cache to a folder that every node sees"
        problems.append(("error", f"the prepared data {cache_path} is not there: {remedy}"))
    if spec.secret and spec.log_folder and not (Path(spec.log_folder).parent / "job.yaml").is_file():
        remedy = "set run.storage to a folder that every node sees, or to an object store"
        problems.append(("error", f"the run folder {Path(spec.log_folder).parent} is not there: {remedy}"))
    shm = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    if shm < _LEAST_SHM_BYTES:
        problems.append(
            ("warning", f"/dev/shm has {shm / 2**20:.0f} MiB free: ranks talk to each other through it; enlarge it")
        )
    logs = Path(spec.log_folder or os.curdir)
    if logs.is_dir() and (free := shutil.disk_usage(logs).free) < _LEAST_DISK_BYTES:
        problems.append(("warning", f"{logs} has {free / 2**20:.0f} MiB free: logs and checkpoints may not fit"))
    num_gpus = visible_gpus()
    if spec.accelerator == "cuda" and num_gpus == 0:
        problems.append(
            ("error", "no GPU is visible: is the NVIDIA driver installed, and the device given to the container?")
        )
    return NodeReport(
        node=node,
        pid=os.getpid(),
        versions={"python": ".".join(map(str, sys.version_info[:3]))}
        | {name: metadata.version(name) for name in PACKAGES},
        num_gpus=num_gpus,
        memory_bytes=memory_bytes(),
        findings=tuple(NodeFinding(level, node, message) for level, message in problems),
    )


def compare_nodes(reports: list[NodeReport]) -> list[NodeFinding]:
    """All findings, and an error for each node whose versions differ from the first one's."""
    findings = [finding for report in reports for finding in report.findings]
    for report in reports[1:]:
        for name, version in report.versions.items():
            if version != (expected := reports[0].versions[name]):
                message = (
                    f"{name} is {version}, and {expected} on node {reports[0].node}: use the same image everywhere"
                )
                findings.append(NodeFinding("error", report.node, message))
    return findings
