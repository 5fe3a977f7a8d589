"""Walk-back: the newest state that can be used, in memory or in storage, and why newer ones cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from zerofleet.trainer.checkpoint.format import DamagedFile, Manifest
from zerofleet.trainer.checkpoint.reader import CheckpointReader
from zerofleet.trainer.checkpoint.snapshot import SnapshotMeta
from zerofleet.trainer.config import DEFAULT_SILO
from zerofleet.trainer.errors import CheckpointUnusable
from zerofleet.trainer.run_folder import CheckpointId, RunFolder


@dataclass(frozen=True)
class Selection:
    """`found` counts what says that the run once had a checkpoint: manifests, fenced ones included, attempts that started from one,
    and, where there is neither, the events that told of a commit. `checkpoint` None with found > 0: there was progress and none of it
    can be used."""

    checkpoint: CheckpointId | None
    skipped: tuple[tuple[CheckpointId, str], ...]
    found: int
    in_memory: bool = False
    """Whether the agents' snapshots hold it, rather than storage."""


def newest_snapshot(
    run: RunFolder, metas: Sequence[SnapshotMeta], exclude: frozenset[CheckpointId] = frozenset()
) -> CheckpointId | None:
    """The newest step of which every rank's snapshot is there, that no later attempt has fenced off and that is not excluded.

    Snapshots of another run that once had this run's name do not count: their token is none of its attempts'.
    """
    attempts = run.attempts()
    tokens = {record.attempt: record.token for record in attempts}
    ranks: dict[tuple[CheckpointId, int], set[int]] = {}
    for meta in metas:
        if meta.token and tokens.get(meta.attempt) == meta.token:
            ranks.setdefault((meta.checkpoint, meta.world_size), set()).add(meta.rank)
    whole = [
        checkpoint
        for (checkpoint, world_size), found in ranks.items()
        if len(found) == world_size and checkpoint not in exclude and not run.fenced(checkpoint, attempts)
    ]
    return max(whole, key=lambda checkpoint: (checkpoint.step, checkpoint.attempt), default=None)


def newest_commit_at(run: RunFolder) -> float | None:
    """When the newest checkpoint was committed (Unix seconds); None without one that says so."""
    for checkpoint in reversed(run.checkpoints()):
        with contextlib.suppress(FileNotFoundError, DamagedFile):
            return Manifest.from_bytes(run.storage.read(checkpoint.manifest)).created_at
    return None


def verify_checkpoint(run: RunFolder, checkpoint: CheckpointId, full: bool = False) -> None:
    """Manifest hash, sizes and headers; with `full` every byte. Raises CheckpointUnusable."""
    try:
        reader = CheckpointReader(run.storage, checkpoint)
        if full:
            reader.check_blocks()
    except DamagedFile as error:
        raise CheckpointUnusable(checkpoint.step, checkpoint.attempt, str(error)) from error


def select_checkpoint(
    run: RunFolder, exclude: frozenset[CheckpointId] = frozenset(), full: bool = False, silo: str = DEFAULT_SILO
) -> Selection:
    """The newest checkpoint that is not fenced off, not excluded, and verifies.

    A folder that has no manifest is reported as skipped but not counted as found: it was never committed, or deleted.
    """
    skipped: list[tuple[CheckpointId, str]] = []
    attempts = run.attempts()
    found = sum(attempt.checkpoint_attempt is not None for attempt in attempts)
    for checkpoint in reversed(run.checkpoint_folders(silo)):
        complete = run.storage.exists(checkpoint.manifest)
        found += complete
        if run.fenced(checkpoint, attempts):
            skipped.append((checkpoint, "an older attempt wrote it after a newer one had started from an earlier step"))
            continue
        if not complete:
            skipped.append((checkpoint, "it has no manifest.json: it was never completed"))
            continue
        if checkpoint in exclude:
            skipped.append((checkpoint, "the ranks found it damaged when they read it"))
            continue
        try:
            verify_checkpoint(run, checkpoint, full)
        except CheckpointUnusable as error:
            skipped.append((checkpoint, error.reason))
            continue
        return Selection(checkpoint, tuple(skipped), found)
    if attempts and not found:  # not for every selection: there may be many events
        found = sum(event.kind == "checkpoint" for event in run.events())
    return Selection(None, tuple(skipped), found)
