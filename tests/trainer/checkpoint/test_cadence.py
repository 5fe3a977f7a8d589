"""When to save: intervals in steps and seconds, one save at a time, and Daly's interval."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest

from zerofleet.trainer.checkpoint.cadence import PRIOR_MTBF_S, SNAPSHOT_SHARE, Cadence, daly_interval_s
from zerofleet.trainer.config import CheckpointConfig


def cadence(**config) -> Cadence:
    return Cadence(CheckpointConfig(**config))


def run(
    cadence: Cadence, steps: int, step_s: float = 1.0, write_s: float = 0.0, stall_s: float = 0.01
) -> dict[int, str]:
    """What is due after each step, where a save is settled `write_s` after it began."""
    done, settles_at = {}, math.inf
    for step in range(1, steps + 1):
        now = step * step_s
        if now > settles_at:
            cadence.settled(cadence.in_flight, now)
            settles_at = math.inf
        done[step] = action = cadence.due(step, now)
        if action != "none":
            cadence.snapshot_started(step)
            cadence.stalled(stall_s)
        if action == "save":
            cadence.save_started(step, now)
            settles_at = now + write_s
        cadence.stepped(step_s)
    return {step: action for step, action in done.items() if action != "none"}


def test_every_n_steps():
    assert run(cadence(interval_steps=4, snapshot_interval_steps=0), 10) == {4: "save", 8: "save"}


def test_zero_is_never():
    assert run(cadence(interval_steps=0, snapshot_interval_steps=0), 100) == {}


def test_snapshots_between_the_saves():
    due = run(cadence(interval_steps=4, snapshot_interval_steps=1), 6)
    assert due == {1: "snapshot", 2: "snapshot", 3: "snapshot", 4: "save", 5: "snapshot", 6: "snapshot"}


def test_a_save_waits_for_the_one_before():
    due = run(cadence(interval_steps=2, snapshot_interval_steps=0), 12, write_s=4.5)
    assert due == {2: "save", 7: "save", 12: "save"}


def test_by_the_clock():
    due = run(cadence(interval_steps=0, interval_s=10, snapshot_interval_steps=0), 30, step_s=3)
    assert due == {4: "save", 8: "save", 12: "save", 16: "save", 20: "save", 24: "save", 28: "save"}


def test_after_a_restore_nothing_is_due_at_once():
    resumed = cadence(interval_steps=10, snapshot_interval_steps=5)
    resumed.durable_step = resumed.snapshot_step = 13
    assert resumed.due(14, 0.0) == "none" and resumed.due(18, 0.0) == "snapshot" and resumed.due(20, 0.0) == "save"


@pytest.mark.parametrize("cost_s", [0.01, 1.0, 60.0])
@pytest.mark.parametrize("mtbf_s", [600.0, 86400.0])
def test_dalys_interval_loses_less_than_its_neighbours(cost_s, mtbf_s):
    """Against his exact model (2006, equation 20): time to do work in pieces of tau with exponential failures."""

    def total(tau: float) -> float:
        return mtbf_s * (math.exp((tau + cost_s) / mtbf_s) - 1) / tau

    best = daly_interval_s(cost_s, mtbf_s)
    assert total(best) <= total(best * 1.1) and total(best) <= total(best * 0.9)
    assert best == pytest.approx(math.sqrt(2 * cost_s * mtbf_s), rel=0.25), "Young's, to first order"


def test_a_save_that_costs_more_than_a_failure_is_made_once_per_failure():
    assert daly_interval_s(100.0, 10.0) == 10.0


def test_auto_follows_cost_and_failures():
    costs = (0.001, 0.1, 10.0)
    intervals = []
    for stall_s in costs:
        made = cadence()
        run(made, 500, stall_s=stall_s)
        intervals.append(made.snapshot_interval_steps())
    steady_s = 10.0 + math.sqrt(2 * 10.0 * PRIOR_MTBF_S)
    assert intervals == [1, 0.1 / SNAPSHOT_SHARE, pytest.approx(steady_s, rel=0.05)], (
        "the share is a limit, Daly's the other"
    )
    made.failures, made.observed_s = 99, 3600.0
    assert made.snapshot_interval_steps() < steady_s / 8


def test_one_early_failure_is_believed():
    made = cadence()
    run(made, 500, stall_s=10.0)
    before = made.snapshot_interval_steps()
    made.failures, made.observed_s = 1, 600.0
    assert made.snapshot_interval_steps() < before / 2


def test_auto_begins_with_a_snapshot_after_the_first_step():
    assert cadence().due(1, 0.0) == "snapshot"


def test_auto_saves_as_far_apart_as_it_means_to_when_steps_take_now_more_and_now_less():
    made, saves, random = cadence(interval_steps="auto", snapshot_interval_steps=0), [], Random(0)
    made._stall_s, made._write_s = 0.5, 10.0
    for step in range(1, 20_001):
        if made.due(step, float(step)) == "save":
            saves.append(step)
            made.save_started(step, float(step))
            made.settled(step, step + 10.0)
        made.stepped(random.gauss(1.0, 0.1))
    gaps = [later - earlier for earlier, later in pairwise(saves)]
    assert min(gaps[5:]) > 0.9 * made._save_interval_steps(), saves


def test_with_two_buffers_no_snapshot_is_taken_while_a_save_waits_to_be_written():
    """Ranks whose file is written already would overwrite what the others still hold: no step would be whole on the node."""
    tight = cadence(interval_steps=4, snapshot_interval_steps=1)
    tight.has_third = False
    assert run(tight, 8, write_s=2.5) == {
        1: "snapshot",
        2: "snapshot",
        3: "snapshot",
        4: "save",
        7: "snapshot",
        8: "save",
    }
