"""Walk-back: the newest checkpoint that verifies, and why newer ones do not."""

from __future__ import annotations

from dataclasses import dataclass

from zerofleet.trainer.checkpoint.format import CheckpointReader, DamagedFile
from zerofleet.trainer.config import DEFAULT_SILO
from zerofleet.trainer.errors import CheckpointUnusable
from zerofleet.trainer.run_folder import CheckpointId, RunFolder


@dataclass(frozen=True)
class Selection:
    """`found` counts the run's own checkpoint folders. `checkpoint` None with found > 0: there are some and none can be used."""

    checkpoint: CheckpointId | None
    skipped: tuple[tuple[CheckpointId, str], ...]
    found: int


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

    A folder that has no manifest is reported as skipped but not counted as found: it was never committed, so nothing is
    lost with it.
    """
    skipped: list[tuple[CheckpointId, str]] = []
    attempts = run.attempts()
    found = 0
    for checkpoint in reversed(run.checkpoint_folders(silo)):
        if run.fenced(checkpoint, attempts):
            skipped.append((checkpoint, "an older attempt wrote it after a newer one had started from an earlier step"))
            continue
        if not run.storage.exists(checkpoint.manifest):
            skipped.append((checkpoint, "it has no manifest.json: it was never completed"))
            continue
        found += 1
        if checkpoint in exclude:
            skipped.append((checkpoint, "the ranks found it damaged when they read it"))
            continue
        try:
            verify_checkpoint(run, checkpoint, full)
        except CheckpointUnusable as error:
            skipped.append((checkpoint, error.reason))
            continue
        return Selection(checkpoint, tuple(skipped), found)
    return Selection(None, tuple(skipped), found)
