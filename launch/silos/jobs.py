"""The job of each silo, from the job of all. Pure, but for the tokenizer, which all silos share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zerofleet.launch.config import JobConfig
from zerofleet.launch.silos.config import SilosConfig
from zerofleet.trainer.config import FEDPROX_MU, MaskingConfig, SiloConfig, SourceFields
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder

FOLDER = "silos"
"""Folder of a run that holds the run folders of its silos."""


def silo_run(run: RunFolder, name: str) -> RunFolder:
    """A silo's own run folder: whatever can be asked of a run can be asked of it."""
    return RunFolder(f"{run.storage.url}/{FOLDER}", name)


def silo_runs(run: RunFolder) -> list[RunFolder]:
    """Of all silos that have one, by name; none where the run has no silos."""
    return [silo_run(run, name) for name in run.storage.list(FOLDER)]


def silo_job(job: JobConfig, name: str, tokenizer: str | None) -> JobConfig:
    """What one silo runs: its own data, nodes and stage, a folder of its own, and nothing of the others'."""
    assert job.silos is not None
    member, url = job.silos.members[name], f"{job.run.storage.rstrip('/')}/{job.run.name}/{FOLDER}"
    own = {field: getattr(member, field) for field in SourceFields.model_fields}
    places = {field: getattr(member, field) for field in ("address", "labels", "nodes", "ranks_per_node")}
    stage = job.train.zero_stage if member.zero_stage is None else member.zero_stage
    return job.model_copy(
        update={
            "silos": None,
            "silo": _member_config(job, job.silos, name),
            "run": job.run.model_copy(update={"name": name, "storage": url}),
            "data": job.data.model_copy(update={**own, "sources": {}, "tokenizer": tokenizer or job.data.tokenizer}),
            "train": job.train.model_copy(update={"zero_stage": stage}),
            "cluster": job.cluster.model_copy(update={k: v for k, v in places.items() if v is not None}),
            "checkpoint": job.checkpoint.model_copy(update={"export": False}),
        }
    )


def weight_limit(job: JobConfig, silos: SilosConfig) -> float:
    """What tokens x weight of all silos in a round cannot exceed together."""
    most_tokens = job.train.global_batch_size * job.data.sequence_length * silos.interval_steps
    return math.fsum(most_tokens * member.weight for member in silos.members.values())


def _member_config(job: JobConfig, silos: SilosConfig, name: str) -> SiloConfig:
    """What its ranks do for the outer steps. Raises UserError for options that fedprox does not have."""
    mu = _fedprox_mu(silos.strategy_options) if silos.strategy == "fedprox" else 0.0
    weight = silos.members[name].weight
    masking = MaskingConfig(weight=weight, weight_limit=weight_limit(job, silos)) if silos.secure_aggregation else None
    return SiloConfig(
        name=name,
        interval_steps=silos.interval_steps,
        overlap_steps=silos.overlap_steps,
        codec=silos.codec,
        proximal_mu=mu,
        privacy=silos.privacy,
        key_file=silos.members[name].key_file,
        masking=masking,
    )


def _fedprox_mu(options: Mapping[str, Any]) -> float:
    """Raises UserError for options that fedprox does not have. Not asked of the strategy itself, which needs numpy: a job is validated
    without."""
    if unknown := sorted(options.keys() - {"lr", "mu"}):
        raise UserError(f"silos.strategy_options: fedprox has no option {', '.join(unknown)}; it has lr and mu")
    mu = options.get("mu", FEDPROX_MU)
    if isinstance(mu, bool) or not isinstance(mu, int | float) or not 0 <= mu < math.inf:
        raise UserError(
            f"silos.strategy_options: mu of fedprox is {mu!r}: give a number of at least 0, where 0 is fedavg"
        )
    return float(mu)


def shared_tokenizer(job: JobConfig) -> str:
    """The folder of the tokenizer that all silos use: the given one, or one that is trained on `data`, once. Raises UserError,
    DataError, StorageError."""
    if job.data.tokenizer is not None:
        return job.data.tokenizer
    from zerofleet.trainer.data.prepare import train_tokenizer

    return str(train_tokenizer(job.data, lambda stage, share, detail: None))
