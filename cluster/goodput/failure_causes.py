"""Causes that ended attempts."""

from __future__ import annotations

import statistics

from zerofleet.cluster.goodput.account import Account, Cause
from zerofleet.cluster.goodput.failure_costs import DRIVER_LOST, FailureCost
from zerofleet.cluster.goodput.save_causes import saves_of
from zerofleet.cluster.verdict import TIME_LIMIT
from zerofleet.trainer.checkpoint.cadence import daly_interval_s

LEAST_HANG_S = 10.0
"""A hang that is noticed sooner is not worth a setting."""


def bad_node(account: Account) -> list[Cause]:
    """Of several nodes, one that most of the failures are of."""
    node = _bad_node(account)
    its = [failure for failure in account.failures if node is not None and _is_of(failure, node)]
    if not its:
        return []
    cost_s = sum(failure.cost_s for failure in its)
    evidence = f"node {node} was at fault in {len(its)} of {len(account.failures)} failures, {cost_s:.1f} s in all"
    fewer = max(1, account.cluster.nodes - 1)
    setting = f"cluster.min_nodes={fewer}" if (account.cluster.min_nodes or account.cluster.nodes) > fewer else ""
    remedy = f"take node {node} out of the cluster; the run then goes on without it"
    return [Cause("one bad node", evidence, cost_s, setting, cost_s if setting else 0.0, remedy)]


def _bad_node(account: Account) -> str | None:
    placed = [failure.node for failure in account.failures if failure.node and _is_of(failure, failure.node)]
    if len(set(account.nodes.values())) < 2 or not placed:
        return None
    node = statistics.mode(placed)
    return node if placed.count(node) >= 2 and 2 * placed.count(node) > len(placed) else None


def _is_of(failure: FailureCost, node: str) -> bool:
    """A bug of the user's has no node."""
    return failure.node == node and failure.kind != "user bug"


def failures(account: Account) -> list[Cause]:
    """By class of verdict, those of a bad node apart."""
    node, end = _bad_node(account), _end_of(account)
    rest = [failure for failure in account.failures if node is None or not _is_of(failure, node)]
    causes = []
    for kind in dict.fromkeys(failure.kind for failure in rest):
        its = [failure for failure in rest if failure.kind == kind]
        seconds = {label: sum(failure.seconds[label] for failure in its) for label in its[0].seconds}
        cost_s = sum(seconds.values())
        parts = ", ".join(f"{label} {s:.1f} s" for label, s in seconds.items() if s >= 0.05)
        evidence = f"{len(its)} x{f' ({parts})' if parts else ''}; the last: {its[-1].sentence}"
        setting, saving_s = _setting_for(account, its)
        is_end = end is not None and its[-1].attempt == end
        name = kind if kind in ("hang", "user bug", DRIVER_LOST) else f"failure: {kind}"
        causes.append(Cause(name, evidence, cost_s, setting, saving_s, _REMEDIES.get(kind, ""), is_end))
    return causes


def _end_of(account: Account) -> int | None:
    """The attempt whose failure ended the run: it was judged so, and nothing was begun after it."""
    if not account.has_failed:
        return None
    for event in reversed(account.ledger.history.events):
        if event.kind == "verdict" and event.data["class"] != TIME_LIMIT:
            return event.attempt if event.data["action"] == "stop" else None
        if event.kind == "state" and event.data["to"] in _BEGINNINGS:
            return None
    return None


def early_end(account: Account) -> list[Cause]:
    """The run failed and no failure of an attempt ended it: the newest driver never came to one, or nothing could be started (again)."""
    if not account.has_failed or _end_of(account) is not None:
        return []
    events = account.ledger.history.events
    begun = max((n for n, e in enumerate(events) if e.kind == "state" and e.data["to"] == "PREPARING"), default=0)
    errors = [event for event in events[begun:] if event.kind == "error" and event.data.get("user")]
    why = next(event.data["why"] for event in reversed(events) if event.kind == "state")
    name, evidence = ("user bug", errors[-1].data["message"]) if errors else ("failure", why)
    return [Cause(name, evidence, 0.0 if account.failures else account.ledger.wall_s, is_end=True)]


_BEGINNINGS = ("PREPARING", "STARTING")
"""States in which a driver, or an attempt, begins."""
_REMEDIES = {
    "user bug": "mend the code: the traceback is in the rank's log",
    "hang": "the stacks of all ranks are in the run's events (`stacks`); look at the rank that is named",
    "host OOM": "lower train.micro_batch_size (or let it be halved: train.min_micro_batch_size) or cluster.ranks_per_node, or raise train.zero_stage",
    "device OOM": "lower train.micro_batch_size (or let it be halved: train.min_micro_batch_size), or set train.activation_checkpointing=true",
    "node": "look at what killed it: the kernel's log of that node",
    "data": "look at the samples that were left out (`zerofleet audit` names their positions); a lower train.learning_rate may spare others",
    "storage": "look at what holds the run folder: its room, its rights, its network",
    "network": "look at the network between the nodes",
    DRIVER_LOST: "look at the driver's log; a supervisor that calls `zerofleet resume` would have noticed at once",
}


def _setting_for(account: Account, its: list[FailureCost]) -> tuple[str, float]:
    """Snapshots more often where repeated steps cost most, a lower limit where noticing did."""
    lost_s, detect_s = (sum(failure.seconds[label] for failure in its) for label in ("lost work", "detect"))
    limit_s = max(LEAST_HANG_S, 10 * account.step_s)
    if its[0].kind == "hang" and detect_s > lost_s and detect_s > 2 * limit_s * len(its):
        return f"cluster.stall_timeout_s={limit_s:.0f}", detect_s - limit_s * len(its)
    if not account.step_s or account.config.checkpoint.snapshot_interval_steps == 1:
        return "", 0.0
    saves = saves_of(account)
    count, stall_s = (saves.count, saves.stall_s) if saves else (0, 0.0)
    every = max(1, round(daly_interval_s(stall_s, account.mtbf_s) / account.step_s))
    at_risk_s = len(its) * (every / 2 + 0.5) * account.step_s
    more_s = stall_s * max(0.0, len(account.steps) / every - count)
    return f"checkpoint.snapshot_interval_steps={every}", max(0.0, lost_s - at_risk_s - more_s)
