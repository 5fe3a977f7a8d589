"""Spike scores against numpy's median, and the window that a replay goes on from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zerofleet.trainer.spikes import LEAST, WINDOW, RecentLosses, spike_score

NOISY = [3.0 + 0.1 * math.sin(7.0 * step) for step in range(WINDOW)]


def test_the_score_is_the_modified_z_score():
    middle = np.median(NOISY)
    spread = np.median(np.abs(np.array(NOISY) - middle))
    assert spike_score(4.5, NOISY) == pytest.approx((4.5 - middle) / (1.4826 * spread))


def test_a_spike_in_the_window_does_not_hide_the_next():
    assert spike_score(30.0, [*NOISY[:-1], 30.0]) > 0.9 * spike_score(30.0, NOISY)


def test_a_loss_that_falls_is_no_spike():
    falling = [8.0 * 0.97**step for step in range(WINDOW + 1)]
    assert all(spike_score(falling[n], falling[max(0, n - WINDOW) : n]) <= 0 for n in range(len(falling)))


def test_nothing_is_judged_before_enough_is_known():
    assert spike_score(1e9, NOISY[: LEAST - 1]) == 0.0
    assert spike_score(1e9, NOISY[:LEAST]) > 100


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_for_the_spikes(loss):
    assert spike_score(loss, NOISY) == 0.0
    losses = RecentLosses()
    losses.add(loss)
    assert losses.values() == []


def test_equal_losses_do_not_make_a_spike_of_noise():
    assert spike_score(2.001, [2.0] * WINDOW) == pytest.approx(0.05)
    assert spike_score(0.0, [0.0] * WINDOW) == 0.0


def test_a_restored_window_judges_as_the_one_that_was_saved():
    lived, restored = RecentLosses(), RecentLosses()
    for step in range(3 * WINDOW):
        lived.add(3.0 + 0.01 * (step % 17))
    assert len(lived.values()) == WINDOW
    restored.restore(lived.values())
    assert restored.score(4.0) == lived.score(4.0) > 0
