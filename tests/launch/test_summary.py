"""The held-out loss in words."""

from __future__ import annotations

import pytest

from zerofleet.launch.progress import Progress
from zerofleet.launch.summary import heldout_line


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (5.9714, "6.0000 (step 0) -> 5.9714 (step 9): it fell by 0.0286 nats"),
        (6.0286, "6.0000 (step 0) -> 6.0286 (step 9): it rose by 0.0286 nats"),
        (6.0, "6.0000 (step 0) -> 6.0000 (step 9): it fell by 0.0000 nats"),
    ],
)
def test_a_loss_falls_or_rises(last, said):
    assert heldout_line(Progress(9, evals=[(0, 6.0), (9, last)])) == said


def test_one_evaluation_is_no_change():
    assert heldout_line(Progress(9, evals=[(0, 6.0)])) == "6.0000 (step 0)"
    assert heldout_line(Progress(9)) == ""
