"""What a decision is worth: arms are the defaults with one change, and a changed arm really lacks what it says."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from zerofleet.benchmarks import extracts
from zerofleet.benchmarks.peers.training.prepare import MODELS, job
from zerofleet.benchmarks.speed import ARMS, Arm, line, measure

pytestmark = pytest.mark.timeout(60)


def starts(seconds: float) -> list:
    return [(seconds * (1 + number / 1000), seconds, 5.0) for number in range(9)]


def test_above_one_the_defaults_are_faster():
    assert "| 0.602 | **1.500** [1.5" in line(ARMS[1], starts(0.6), starts(0.4))


def test_arms_change_one_thing_each():
    plain = job(MODELS["small"], Path("/x"), {})
    for arm in ARMS[1:]:
        assert bool(arm.settings) != bool(arm.change)
        if arm.settings:
            assert job(MODELS["small"], Path("/x"), arm.settings) != plain or arm.name == "attention: eager"


def test_the_series_are_steps_by_arm():
    (series,) = extracts.speed({"arms": [{"arm": "defaults", "starts": [[0.5, 1.0, 6.0], [0.6, 1.0, 6.0]]}]})
    assert (series.name, series.values, series.better) == ("step, defaults", [0.5, 0.6], "lower")


@pytest.mark.integration
@pytest.mark.further
@pytest.mark.timeout(300)
def test_arms_train_the_same_and_round_otherwise(tmp_path):
    tiny = dataclasses.replace(MODELS["small"], global_batch_size=4, micro_batch_size=1, steps_per_turn=1)
    arms = [Arm("defaults"), *(arm for arm in ARMS if arm.change)]
    found = measure(tiny, "bf16", arms, 1, 2, random.Random(0), tmp_path)
    losses = [[loss for _, _, loss in each] for each in found]
    for each in losses[1:]:
        assert each == pytest.approx(losses[0], rel=1e-3)
    by_change = dict(zip([arm.change for arm in arms], losses, strict=True))
    assert by_change.get("cores bound", losses[0]) == losses[0], "where a rank runs changes no bit"
    assert by_change["without fused loss"] != losses[0], "whole logits are rounded at another place"
