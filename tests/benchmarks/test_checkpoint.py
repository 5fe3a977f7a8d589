"""The checkpoint benchmark's arithmetic, and its whole path at a size that takes no time."""

from __future__ import annotations

import pytest

from zerofleet.benchmarks import checkpoint
from zerofleet.benchmarks.checkpoint import BARS, TINY, Bar, measure, medians, ratios, report, summary, verdict
from zerofleet.benchmarks.recovery import ENVIRONMENT, prepare_environment

FASTER = Bar("durable_s", "peer", "ours", 1.8, is_most=False, stretch=2.5)
ROUNDS = [
    {"ours": {"durable_s": 1.0, "load_s": 2.0}, "peer": {"durable_s": 2.0, "load_s": 8.0}},
    {"ours": {"durable_s": 2.0, "load_s": 2.0}, "peer": {"durable_s": 6.0, "load_s": 6.0}},
]


def test_a_ratio_compares_two_arms_of_one_round():
    assert ratios(ROUNDS, FASTER) == [2.0, 3.0]
    assert ratios(ROUNDS, Bar("load_s", "peer", "ours", 3, False)) == [4.0, 3.0]


@pytest.mark.parametrize(("value", "is_most", "met"), [(0.1, True, True), (0.11, True, False), (0.1, False, True)])
def test_the_median_meets_a_bar_that_it_reaches(value, is_most, met):
    found = verdict([value, value, 9.0 if is_most else 0.0, value], 0.1, is_most)
    assert (found["median"], found["met"], found["pairs"]) == (value, met, 4)


def test_a_stretch_is_told_beside_the_bar():
    found = verdict([2.0, 2.1, 2.2], FASTER.limit, FASTER.is_most, FASTER.stretch)
    assert (found["met"], found["stretch_met"]) == (True, False)
    assert report({FASTER.label: found}) == (
        "durable_s: peer over ours: 2.1 [2, 2.2], bar at least 1.8: met, stretch 2.5 missed"
    )


def test_a_missed_bar_is_said_aloud():
    assert report({"x": verdict([1.0, 1.0], 1.8, is_most=False)}).endswith("bar at least 1.8: MISSED")


def test_medians_are_by_arm_and_figure():
    assert medians(ROUNDS)["peer"] == {"durable_s": 4.0, "load_s": 7.0}


@pytest.mark.integration
@pytest.mark.further
@pytest.mark.timeout(400)
def test_the_whole_path_at_a_tiny_size(tmp_path, monkeypatch):
    """Every load in it is compared bitwise by the benchmark itself."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    prepare_environment()
    measured = measure(tmp_path, TINY, num_rounds=1, num_pairs=1, is_cold=False)
    found = summary(measured)
    assert len(found["ratios"]) == len(BARS) + len(TINY.training_widths)
    # What an overlapped save costs is a difference of two times: at this size it may be below zero.
    assert all(ratio["median"] > 0 for label, ratio in found["ratios"].items() if not label.startswith("cost_s"))
    assert (len(measured["rounds"]), len(measured["resizes"])) == (1, 1)
    assert [len(pairs) for pairs in measured["slowdown_pairs"].values()] == [1, 1]
    assert measured["state_bytes"] > 12 * 20_000
    assert not list((tmp_path / "runs/saves/checkpoints").glob("step-00000001/*")), "a round leaves nothing behind"
    assert checkpoint.FULL.layers * 16 * checkpoint.FULL.width**2 * 12 > 10**9, "the full size is a gigabyte and more"
