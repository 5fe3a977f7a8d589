"""A run's ledger, checked against what is known besides it."""

from __future__ import annotations

import pytest

from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.accounts import read_history
from zerofleet.trainer.run_folder import RunFolder

FINAL = ("FINISHED", "STOPPED", "FAILED")


def account(run: RunFolder) -> Ledger:
    """Of a run that has ended. Every second between its first driver's claim and its last state has a label, in all, by attempt and by
    rank, but for those between a final state and the next driver; lost work is the steps that were repeated, and what was cut short."""
    ledger = Ledger.of(read_history(run))
    events, drivers = ledger.history.events, ledger.history.drivers
    finals = [event.start for event in events if event.kind == "state" and event.data["to"] in FINAL]
    away_s = sum(
        driver.started_at - last
        for driver in drivers
        if (last := max((f for f in finals if f < driver.started_at), default=None))
    )
    wall_s = finals[-1] - drivers[0].started_at - away_s
    assert sum(ledger.labels.values()) == pytest.approx(wall_s, rel=0.01)
    assert sum(sum(seconds.values()) for seconds in ledger.attempts.values()) == pytest.approx(wall_s, rel=0.01)
    for (attempt, _), seconds in ledger.ranks.items():
        assert sum(seconds.values()) == pytest.approx(sum(ledger.attempts[attempt].values()), rel=0.01)
        assert min(seconds.values()) >= 0
    assert sorted(ledger.ranks) == [(a.attempt, rank) for a in run.attempts() for rank in range(a.world_size)]
    done = [
        (record["attempt"], record["step"], record["duration_s"])
        for record in run.read("metrics")
        if record["kind"] == "step"
    ]
    starts = [(record.attempt, record.start_step) for record in run.attempts()]
    repeated_s = sum(s for attempt, step, s in done if any(later > attempt and start < step for later, start in starts))
    assert ledger.repeated_s == pytest.approx(repeated_s, rel=0.01)
    assert ledger.labels["lost work"] >= 0.99 * repeated_s
    return ledger
