"""Which checkpoints go."""

from __future__ import annotations

import pytest

from zerofleet.trainer.checkpoint.retention import to_delete
from zerofleet.trainer.run_folder import CheckpointId

ALL = [CheckpointId(step, 1) for step in (10, 20, 30, 40, 50)]


@pytest.mark.parametrize(
    ("keep_last", "keep_every_steps", "gone"),
    [(5, 0, []), (9, 0, []), (2, 0, [10, 20, 30]), (1, 20, [10, 30]), (1, 7, [10, 20, 30, 40]), (3, 10, [])],
)
def test_the_newest_and_the_multiples_stay(keep_last, keep_every_steps, gone):
    assert [c.step for c in to_delete(list(reversed(ALL)), keep_last, keep_every_steps)] == gone


def test_nothing_is_deleted_of_nothing():
    assert to_delete([], 1, 0) == []
