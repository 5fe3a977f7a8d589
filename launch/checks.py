"""Static checks of a whole job: the trainer's lint and what concerns the cluster section."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator

from zerofleet.launch.config import JobConfig
from zerofleet.launch.silos.findings import silo_findings
from zerofleet.launch.silos.jobs import silo_job
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.lint import Finding, lint

_MOST_RANKS = 100_000
"""Their numbers have five digits in the names of rank files."""


def check_job(job: JobConfig) -> None:
    """Writes warnings to stderr. Raises UserError with all errors, one per line."""
    own = lint(job.train_config(), job.cluster.world_size) if job.silos is None else silo_findings(job)
    refuse_errors([*own, *cluster_findings(job)])


def refuse_errors(findings: Iterable[Finding]) -> None:
    """Writes warnings to stderr. Raises UserError with all errors, one per line."""
    findings = list(findings)
    for finding in findings:
        if finding.level == "warning":
            sys.stderr.write(f"{finding}\n")
    errors = [f"{finding.where}: {finding.message}" for finding in findings if finding.level == "error"]
    if errors:
        raise UserError(errors[0] if len(errors) == 1 else "".join(f"\n  - {error}" for error in errors))


def cluster_findings(job: JobConfig) -> Iterator[Finding]:
    """What of `cluster` contradicts itself or the rest of the job."""
    cluster = job.cluster
    if cluster.gpus_per_rank not in (0, 1):
        yield Finding(
            "error",
            "cluster.gpus_per_rank",
            f"it is {cluster.gpus_per_rank:g}: a rank has one GPU of its own or none. Set 0 or 1",
        )
    if cluster.address and not re.fullmatch(r"[^\s:/]+:\d{1,5}", cluster.address):
        yield Finding(
            "error",
            "cluster.address",
            f"{cluster.address!r} is not host:port: give the address of the Ray head, such as 10.0.0.1:6379, or nothing for a Ray of the "
            "run's own",
        )
    if cluster.world_size > _MOST_RANKS:
        yield Finding(
            "error",
            "cluster.ranks_per_node",
            f"{cluster.nodes} nodes of {cluster.ranks_per_node} are {cluster.world_size} ranks, and a run has at most {_MOST_RANKS}: lower one of them",
        )
    if cluster.min_nodes > cluster.nodes:
        yield Finding(
            "error",
            "cluster.min_nodes",
            f"it is {cluster.min_nodes} and cluster.nodes, the most that the run takes, is {cluster.nodes}: lower it, or raise cluster.nodes",
        )
    if (cluster.max_hours or cluster.max_cost) and job.silos is not None:
        yield Finding(
            "error",
            "cluster.max_hours" if cluster.max_hours else "cluster.max_cost",
            "a run of silos does not keep it yet: remove it, and stop the run with `zerofleet stop` when its time has come",
        )
    if cluster.bind_cores and (cluster.gpus_per_rank or job.silos is not None):
        why = "ranks of GPUs are not bound" if cluster.gpus_per_rank else "silos on one host would take the same cores"
        yield Finding("error", "cluster.bind_cores", f"{why}: set it to false")
    if cluster.gpus_per_rank == 0 and job.model.liger_kernels:
        yield Finding(
            "error",
            "model.liger_kernels",
            "Liger's kernels run on GPUs only and cluster.gpus_per_rank is 0: set it to false, or cluster.gpus_per_rank=1",
        )
    if cluster.gpus_per_rank == 0 and job.model.attn_implementation == "flash_attention_2":
        yield Finding(
            "error",
            "model.attn_implementation",
            "flash_attention_2 runs on GPUs only and cluster.gpus_per_rank is 0: use sdpa, or set cluster.gpus_per_rank=1",
        )


def check_machine(job: JobConfig) -> None:
    """For a Ray of the run's own: raises UserError when this machine can never hold the ranks; warns when they share cores."""
    if job.silos is not None:
        for name in job.silos.members:
            check_machine(silo_job(job, name, None))
    if job.silos is not None or job.cluster.address:
        return
    check_no_labels(job)
    cluster, cores = job.cluster, len(os.sched_getaffinity(0))
    threads = max(1, int(cluster.cpus_per_rank))
    if cluster.bind_cores and cluster.world_size * threads > cores:
        raise UserError(
            f"cluster.bind_cores=true: {cluster.world_size} ranks with {threads} cores of their own each do not fit onto this machine's {cores}: lower "
            "cluster.ranks_per_node, or set cluster.bind_cores=false"
        )
    needed = math.ceil(cluster.world_size * cluster.cpus_per_rank)
    ranks = f"{cluster.world_size} ranks ({cluster.nodes} nodes x {cluster.ranks_per_node})"
    if needed > cores:
        raise UserError(
            f"{ranks} with cluster.cpus_per_rank={cluster.cpus_per_rank:g} need {needed} cores and this machine has {cores}: "
            f"lower cluster.ranks_per_node, or let ranks share cores with cluster.cpus_per_rank={_share(cores, cluster.world_size):g}"
        )
    if cluster.world_size > cores:
        sys.stderr.write(f"warning: {ranks} share {cores} cores: they wait for each other in every step\n")


def check_no_labels(job: JobConfig) -> None:
    """For a Ray of the run's own: raises UserError where its one node was to carry labels."""
    if labels := job.cluster.labels:
        words = ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
        who = f"silo {job.silo.name}" if job.silo is not None else "the run"
        raise UserError(
            f"{who} is to run on nodes with the label(s) {words}, and a Ray of its own on this machine has one node without any: name the cluster "
            "that has them by cluster.address, or remove the labels"
        )


def _share(cores: int, world_size: int) -> float:
    """The largest share of a core, in hundredths, that every rank can have."""
    return math.floor(100 * cores / world_size) / 100
