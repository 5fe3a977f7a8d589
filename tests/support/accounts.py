"""A run's ledger, checked against what is known besides it."""

from __future__ import annotations

from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.accounts import read_history
from zerofleet.launch.chaos.balance import balance
from zerofleet.trainer.run_folder import RunFolder


def account(run: RunFolder) -> Ledger:
    """Of a run that has ended, and whose accounts add up."""
    assert balance(run) == []
    ledger = Ledger.of(read_history(run))
    assert sorted(ledger.ranks) == [(a.attempt, rank) for a in run.attempts() for rank in range(a.world_size)]
    return ledger
