"""Why a run took as long as it did: a table of rules over its ledger, each with its evidence in numbers. Pure.

A rule says what its cause cost, and where a setting would have saved some of that, which and how much. The causes are told by their
cost, what ended the run before all others.
"""

from __future__ import annotations

from collections.abc import Callable

from zerofleet.cluster.goodput.account import LEAST_SHARE, Account, Cause
from zerofleet.cluster.goodput.failure_causes import bad_node, early_end, failures
from zerofleet.cluster.goodput.save_causes import slow_storage, too_frequent_saves
from zerofleet.cluster.goodput.step_causes import compile_every_step, data_wait, slow_rank, swap, tiny_micro_batch

RULES: tuple[Callable[[Account], list[Cause]], ...] = (
    bad_node,
    failures,
    early_end,
    slow_rank,
    data_wait,
    compile_every_step,
    tiny_micro_batch,
    swap,
    slow_storage,
    too_frequent_saves,
)


def explain(account: Account) -> list[Cause]:
    """What ended the run first, then by cost."""
    found = [cause for rule in RULES for cause in rule(account)]
    least_s = LEAST_SHARE * account.ledger.wall_s
    told = [cause for cause in found if cause.is_end or (cause.cost_s > 0 and cause.cost_s >= least_s)]
    return sorted(told, key=lambda cause: (not cause.is_end, -cause.cost_s))


def best_setting(causes: list[Cause]) -> Cause | None:
    """The cause whose setting would have saved most; None where no setting would have saved anything."""
    return max((c for c in causes if c.setting and c.saving_s > 0), key=lambda cause: cause.saving_s, default=None)
