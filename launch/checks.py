"""Static checks of a whole job: the trainer's lint and what concerns the cluster section."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from zerofleet.launch.config import JobConfig
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.lint import Finding, lint


def check_job(job: JobConfig) -> None:
    """Writes warnings to stderr. Raises UserError with all errors, one per line."""
    findings = [*lint(job.train_config(), job.cluster.world_size), *cluster_findings(job)]
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
    if cluster.gpus_per_rank == 0 and job.model.attn_implementation == "flash_attention_2":
        yield Finding(
            "error",
            "model.attn_implementation",
            "flash_attention_2 runs on GPUs only and cluster.gpus_per_rank is 0: use sdpa, or set cluster.gpus_per_rank=1",
        )
