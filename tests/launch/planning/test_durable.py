"""The steps that the loss of a head can cost."""

from __future__ import annotations

import pytest

from zerofleet.launch.planning.durable import durable_bound
from zerofleet.trainer.config import CheckpointConfig


@pytest.mark.parametrize(
    ("interval_steps", "interval_s", "step_s", "write_s", "steps"),
    [
        (50, 0, None, None, None),
        (50, 0, 2.0, None, None),
        (10, 0, 1.0, 40.0, 40 + 40),
        (50, 0, 2.0, 9.0, 50 + 5),
        (50, 60, 2.0, 1.0, 30 + 1),
        (50, 600, 2.0, 1.0, 50 + 1),
        (0, 60, 2.0, 4.0, 30 + 2),
        (0, 0, 2.0, 4.0, 1000),
        (5000, 0, 1.0, 3.0, 1000),
        ("auto", 0, None, None, None),
    ],
)
def test_the_interval_and_what_is_done_while_a_checkpoint_is_written(
    interval_steps, interval_s, step_s, write_s, steps
):
    checkpoint = CheckpointConfig(interval_steps=interval_steps, interval_s=interval_s)
    assert durable_bound(checkpoint, 1000, step_s, write_s).steps == steps


def test_without_a_checkpoint_before_the_end_it_says_which_setting():
    assert "set checkpoint.interval_steps" in durable_bound(CheckpointConfig(interval_steps=0), 10, None, None).why


def test_auto_is_dalys_interval():
    found = durable_bound(CheckpointConfig(interval_steps="auto"), 10**9, 1.0, 100.0)
    assert found.steps == pytest.approx((2 * 0.03 * 100 * 86400) ** 0.5 + 100, rel=0.01)
