"""Whether the accounts of a run that has ended add up: checked against what is known of it besides them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from zerofleet.cluster.goodput.history import History
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.accounts import read_history
from zerofleet.trainer.run_folder import RunFolder

TOLERANCE = 0.01
"""Of the wall time, or of what was repeated."""
_FINAL = ("FINISHED", "STOPPED", "FAILED")


def balance(run: RunFolder) -> list[str]:
    """What does not add up, in sentences. Every second between the first driver's claim and the last state has to have a label, in all, by attempt and
    by rank, but for those between a final state and the next driver; lost work has to hold the steps that were repeated."""
    history = read_history(run)
    return list(_problems(Ledger.of(history), history)) if history.drivers else []


def _problems(ledger: Ledger, history: History) -> Iterator[str]:
    wall_s = _wall_s(history)
    sums = {
        "all labels": sum(ledger.labels.values()),
        "all attempts": sum(sum(seconds.values()) for seconds in ledger.attempts.values()),
    }
    for name, found_s in sums.items():
        if not math.isclose(found_s, wall_s, rel_tol=TOLERANCE):
            yield f"the accounts do not add up: {name} are {found_s:.3f} s of {wall_s:.3f} s"
    for (attempt, rank), seconds in ledger.ranks.items():
        found_s, own_s = sum(seconds.values()), sum(ledger.attempts.get(attempt, {}).values())
        if not math.isclose(found_s, own_s, rel_tol=TOLERANCE, abs_tol=1e-6) or min(seconds.values()) < 0:
            yield f"the accounts do not add up: rank {rank} of attempt {attempt} has {found_s:.3f} s of {own_s:.3f} s"
    repeated_s = _repeated_s(history)
    if not math.isclose(ledger.repeated_s, repeated_s, rel_tol=TOLERANCE, abs_tol=1e-6):
        yield f"the accounts do not add up: {ledger.repeated_s:.3f} s of steps are told as repeated, and {repeated_s:.3f} s were"
    if ledger.labels["lost work"] < (1 - TOLERANCE) * repeated_s:
        yield f"the accounts do not add up: {repeated_s:.3f} s were repeated, and lost work is {ledger.labels['lost work']:.3f} s"


def _wall_s(history: History) -> float:
    """By drivers' records and final states alone."""
    finals = [event.start for event in history.events if event.kind == "state" and event.data["to"] in _FINAL]
    ended_at = finals[-1] if finals else history.ended_at
    away_s = 0.0
    for before, driver in pairwise(history.drivers):  # one that died without a final state has left nobody a pause
        if its := [final for final in finals if before.started_at < final < driver.started_at]:
            away_s += driver.started_at - its[-1]
    return ended_at - history.drivers[0].started_at - away_s


def _repeated_s(history: History) -> float:
    """Of steps that a later attempt did again, or began before."""
    starts = [(record.attempt, record.start_step) for record in history.attempts]
    return sum(
        event.duration_s
        for event in history.results
        if event.kind == "step" and any(later > event.attempt and start < event.step for later, start in starts)
    )
