"""The job of each silo, from the job of all. Pure, but for the tokenizer, which all silos share."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import xxhash

from zerofleet.launch.config import JobConfig
from zerofleet.launch.silos.config import SilosConfig
from zerofleet.trainer.config import SiloConfig, SourceFields
from zerofleet.trainer.lint import Finding, lint
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
    places = {"address": member.address, "nodes": member.nodes, "ranks_per_node": member.ranks_per_node}
    stage = job.train.zero_stage if member.zero_stage is None else member.zero_stage
    return job.model_copy(
        update={
            "silos": None,
            "silo": SiloConfig(name=name, interval_steps=job.silos.interval_steps, codec=job.silos.codec),
            "run": job.run.model_copy(update={"name": name, "storage": url}),
            "data": job.data.model_copy(update={**own, "sources": {}, "tokenizer": tokenizer or job.data.tokenizer}),
            "train": job.train.model_copy(update={"zero_stage": stage}),
            "cluster": job.cluster.model_copy(update={k: v for k, v in places.items() if v is not None}),
            "checkpoint": job.checkpoint.model_copy(update={"export": False}),
        }
    )


def silo_findings(job: JobConfig) -> Iterator[Finding]:
    """What of `silos` contradicts itself or the rest of the job; a silo's own job is looked at as any other."""
    silos = job.silos
    if silos is None:
        return
    if job.train.steps % silos.interval_steps:
        yield Finding(
            "error",
            "silos.interval_steps",
            f"train.steps={job.train.steps} is no multiple of {silos.interval_steps}: the last steps would be in no outer step",
        )
    if job.silo is not None:
        yield Finding("error", "silo", "it is written by zerofleet for the silos of a run: remove it")
    yield from _strategy_findings(silos)
    for name in silos.members:
        own = silo_job(job, name, None)
        for finding in lint(own.train_config(), own.cluster.world_size):
            yield Finding(finding.level, f"silos.members.{name}: {finding.where}", finding.message)


def _strategy_findings(silos: SilosConfig) -> Iterator[Finding]:
    if silos.strategy == "fedprox":
        yield Finding("error", "silos.strategy", "the inner steps do not know fedprox's mu yet: take fedavg or diloco")
    if silos.strategy == "every_step" and silos.interval_steps != 1:
        yield Finding("error", "silos.interval_steps", f"it is {silos.interval_steps} and every_step takes 1")


def shared_tokenizer(job: JobConfig) -> str:
    """The folder of the tokenizer that all silos use: the given one, or one that is trained on `data`, once. Raises UserError,
    DataError."""
    if job.data.tokenizer is not None:
        return job.data.tokenizer
    from zerofleet.trainer.data.local_files import publish
    from zerofleet.trainer.data.prepare import cache_root
    from zerofleet.trainer.data.sources import resolve
    from zerofleet.trainer.data.tokenizer import save_trained

    corpus, size = resolve(job.data), job.data.tokenizer_vocab_size
    facts = [job.data.format, job.data.text_field, size, corpus.identity]
    folder = cache_root(job.data) / "tokenizers" / xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())
    if not folder.exists():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        save_trained(corpus, size, draft)
        with contextlib.suppress(FileExistsError):  # another run has made the same meanwhile
            publish(draft, folder)
    return str(folder)
