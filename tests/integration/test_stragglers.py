"""Of two real ranks one is slow: its own time tells, where the step's duration does not."""

from __future__ import annotations

import statistics

import pytest

from tests.support.ranks import Plan, job, run_attempt
from zerofleet.cluster.policy.stragglers import WINDOW_STEPS, WINDOWS, Straggler, Stragglers

pytestmark = [pytest.mark.integration, pytest.mark.further, pytest.mark.timeout(200)]

STEPS = WINDOW_STEPS * WINDOWS + 4


def run(folder, corpus, cache, stage, slow=None):
    """Findings, and the median step of each rank by its own account."""
    changes = {"train__steps": STEPS, "train__zero_stage": stage, "checkpoint__interval_steps": 0}
    outcome = run_attempt(job(folder, corpus, **changes), cache, 2, Plan(slow=slow))
    assert not outcome.errors, outcome.errors
    told = [event for event in outcome.events if event.phase == "step" and "own_s" in event.data]
    assert sorted((e.rank, e.step) for e in told) == [(rank, n + 1) for rank in range(2) for n in range(STEPS)]
    stragglers = Stragglers(2)
    found: list[Straggler] = [f for event in told for f in stragglers.measured(event.rank, event.data["own_s"])]
    durations_s = [statistics.median(e.duration_s for e in told if e.rank == rank) for rank in range(2)]
    return found, durations_s


@pytest.mark.parametrize(("stage", "rank", "how"), [(1, 1, "sleeps"), (1, 0, "computes"), (3, 1, "computes")])
def test_the_slow_one_is_named_and_both_take_as_long(tmp_path, tiny_corpus, tiny_cache, stage, rank, how):
    found, durations_s = run(tmp_path, tiny_corpus, tiny_cache, stage, (rank, 0.1, how))
    assert [(straggler.rank, straggler.is_over) for straggler in found] == [(rank, False)]
    assert max(durations_s) < 1.5 * min(durations_s)


@pytest.mark.parametrize("stage", [1, 3])
def test_two_alike_are_not(tmp_path, tiny_corpus, tiny_cache, stage):
    assert run(tmp_path, tiny_corpus, tiny_cache, stage)[0] == []


def test_at_stage_3_one_that_sleeps_is_not_seen(tmp_path, tiny_corpus, tiny_cache):
    """A known limit: there only the time for which a rank does not sleep can be told from waiting."""
    assert run(tmp_path, tiny_corpus, tiny_cache, 3, (1, 0.1, "sleeps"))[0] == []
