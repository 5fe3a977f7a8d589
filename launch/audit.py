"""Reads what the audit of a run needs: its ledger, its attempts, the steps of its checkpoints, and the prepared data it was fed."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerofleet.cluster.outer.state import OuterStore
from zerofleet.launch.config import JobConfig
from zerofleet.launch.drivers import effective_job
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.checkpoint.format import DamagedFile, Manifest
from zerofleet.trainer.config import DEFAULT_SILO
from zerofleet.trainer.data.audit import Audit, Progress, audit
from zerofleet.trainer.data.cache import DataCache, prepared_in
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.ledger_table import LedgerTable
from zerofleet.trainer.data.prepare import cache_root
from zerofleet.trainer.data.stream.attach import attach
from zerofleet.trainer.errors import NotFoundError, StorageError, UserError
from zerofleet.trainer.run_folder import AttemptRecord, CheckpointId, RunFolder


@dataclass(frozen=True)
class RunAudit:
    """The audit of a run, and what it went by."""

    run: RunFolder
    job: JobConfig
    attempts: tuple[AttemptRecord, ...]
    audit: Audit
    cache: DataCache | None
    """None: no step has been recorded, and none is known to have been done."""
    wall_s: float

    @property
    def unrecorded(self) -> tuple[int, int] | None:
        """The first and last step that the newest attempt goes on from and nothing has been recorded of yet: a snapshot has them, and
        tells them when the attempt takes it up."""
        started = self.attempts[-1].start_step if self.attempts else 0
        return (self.audit.last_step + 1, started) if started > self.audit.last_step else None

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "run": self.run.name,
            "exact": self.audit.is_exact,
            "proven_step": self.audit.proven_step,
            "last_step": self.audit.last_step,
            "steps": self.job.train.steps,
            "positions": self.audit.num_positions,
            "tokens": self.audit.num_tokens,
            "repeated_steps": self.audit.num_repeated,
            "quarantine": [
                {"ranges": ranges, "attempt": record.attempt, "from_step": record.start_step + 1}
                for record, ranges in self.audit.left_out
            ],
            "findings": [finding.to_dict() for finding in self.audit.findings],
            "data": self.cache.fingerprint if self.cache else None,
            "cache": str(self.cache.path) if self.cache else None,
            "left_out": self.cache.left_out.to_dict() if self.cache else None,
            "wall_s": self.wall_s,
        }


def nobody_watches(done: int, total: int) -> None:
    """No progress is shown."""


def audit_run(run: RunFolder, cache: Path | None = None, progress: Progress = nobody_watches) -> RunAudit:
    """The audit of a run in any state, up to what is recorded of it now. `cache` is where prepared data lies, by default as the job
    says.

    NotFoundError when the run's data is not there, UserError when other data is, DataError when it is damaged, StorageError when the
    ledger cannot be read.
    """
    began = time.monotonic()
    job = effective_job(run)
    # A run that goes on only adds: what is read later knows of all that was read before.
    checkpoints = run.checkpoints()
    table = _read_ledger(run)
    attempts = tuple(run.attempts())
    known_step = max((c.step for c in checkpoints if not run.fenced(c, list(attempts))), default=0)
    if not len(table) and not known_step:
        return RunAudit(run, job, attempts, Audit((), 0, 0, 0, 0, ()), None, time.monotonic() - began)
    fingerprint = _fingerprint(run, table, checkpoints)
    data = _open_data(fingerprint, job, cache)
    data.verify()  # else ranks that were fed what a disk made of it would agree with what is read now
    plan = BatchPlan.of(job.train.global_batch_size, job.train.micro_batch_size, 1)
    feed = Feed.of(job.train_config(), data.train, plan, job.order_key, ())
    found = audit(table, attempts, feed, job.train.steps, known_step, progress, fingerprint)
    return RunAudit(run, job, attempts, found, data, time.monotonic() - began)


def missing_silos(run: RunFolder, found: Collection[str]) -> dict[str, str]:
    """Of a run of silos, those whose own folder is not among the found, and how they are known. None before any of them has begun."""
    job = effective_job(run)
    if job.silos is None:
        return {}
    store = OuterStore(run.storage, job.silos.keep_rounds)
    rounds = store.rounds()
    if not found and not rounds:
        return {}
    known = dict.fromkeys(job.silos.members, "it is in the run's job.yaml")
    for number in rounds:
        with contextlib.suppress(FileNotFoundError):  # the run goes on, and keeps the newest rounds only
            tokens = store.record_of(number).tokens
            known |= {name: f"{count:,} tokens of it are in outer round {number}" for name, count in tokens.items()}
    return {name: why for name, why in sorted(known.items()) if name not in found}


def _read_ledger(run: RunFolder) -> LedgerTable:
    try:
        return LedgerTable.of(run.read("ledger"), DEFAULT_SILO)
    except ValueError as error:
        raise StorageError(
            f"{run.storage.path('ledger')} is damaged: a line is not JSON ({error}). Restore the file, or take the line out of it"
        ) from error


def _fingerprint(run: RunFolder, table: LedgerTable, checkpoints: list[CheckpointId]) -> str:
    """Of the data that the run was fed: as its newest checkpoint says, on which ranks agreed; without one, as most of its lines do."""
    for checkpoint in reversed(checkpoints):
        with contextlib.suppress(DamagedFile):
            return Manifest.from_bytes(run.storage.read(checkpoint.manifest)).fingerprints["data"]
    if said := Counter(name for name in table.data if name):
        return said.most_common(1)[0][0]
    raise UserError(
        f"run {run.name!r} does not say which data it was fed: neither its ledger does, which an older zerofleet wrote, nor a "
        "checkpoint. Resume it, and audit it when it has a checkpoint"
    )


def _open_data(fingerprint: str, job: JobConfig, cache: Path | None) -> DataCache:
    root = cache or cache_root(job.data)
    if job.data.stream is not None:
        published = attach(job.data, root, lambda stage, share, detail: None)
        if published.fingerprint == fingerprint:
            return published
        raise UserError(
            f"the run was fed published data with fingerprint {fingerprint}; {job.data.stream.url} holds {published.fingerprint}: set "
            "data.stream.url to where it was published"
        )
    found = prepared_in(root)
    if fingerprint in found:
        return DataCache.open(found[fingerprint])
    wanted = f"prepared data with fingerprint {fingerprint}"
    remedy = "name the folder that holds it by --cache, or prepare the same corpus again with `zerofleet submit` and the run's job.yaml"
    if cache is not None and found:
        others = ", ".join(f"{other} in {path.name}" for other, path in found.items())
        raise UserError(f"the run was fed {wanted}; {root} holds other data ({others}): {remedy}")
    raise NotFoundError(f"the run was fed {wanted}, which is not in {root} ({len(found)} others are): {remedy}")
