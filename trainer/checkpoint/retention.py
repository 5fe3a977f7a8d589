"""Which checkpoints to keep: a pure policy."""

from __future__ import annotations

from collections.abc import Sequence

from zerofleet.trainer.run_folder import CheckpointId


def to_delete(checkpoints: Sequence[CheckpointId], keep_last: int, keep_every_steps: int) -> list[CheckpointId]:
    """Of complete checkpoints, those that neither `keep_last` (newest steps) nor `keep_every_steps` (multiples) keeps.

    The caller deletes only after the newest has been verified.
    """
    ordered = sorted(checkpoints, key=lambda c: (c.step, c.attempt))
    newest = set(ordered[-keep_last:])
    return [
        c for c in ordered if c not in newest and not (keep_every_steps and c.step and c.step % keep_every_steps == 0)
    ]
