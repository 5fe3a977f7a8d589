"""What the rules of `causes` read, and what they find."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.goodput.failure_costs import FailureCost, failure_costs
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.trainer.checkpoint.cadence import PRIOR_FAILURES, PRIOR_MTBF_S
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.events import Event

LEAST_SHARE = 0.02
"""Of the wall time: what costs less is not told, failures apart."""


@dataclass(frozen=True)
class Cause:
    """`setting` is a `key=value` that would have saved `saving_s` of `cost_s`; empty where none would."""

    name: str
    evidence: str
    cost_s: float
    setting: str = ""
    saving_s: float = 0.0
    remedy: str = ""
    """What to do where no setting helps, or besides."""
    is_end: bool = False
    """It ended the run."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Account:
    """What the rules read."""

    ledger: Ledger
    config: TrainConfig
    cluster: ClusterConfig

    @cached_property
    def failures(self) -> list[FailureCost]:
        return failure_costs(self.ledger)

    @cached_property
    def nodes(self) -> dict[tuple[int, int], str]:
        """By attempt and rank."""
        begun = [e for e in self.ledger.history.events if e.kind == "phase" and e.phase == "init" and "node" in e.data]
        return {(event.attempt, event.rank): str(event.data["node"]) for event in begun}

    @cached_property
    def steps(self) -> list[Event]:
        """Those that count, in order."""
        return [event for _, event in sorted(self.ledger.history.counted.items())]

    @property
    def step_s(self) -> float:
        return self.ledger.history.median_step_s

    @property
    def has_failed(self) -> bool:
        states = [event.data["to"] for event in self.ledger.history.events if event.kind == "state"]
        return bool(states) and states[-1] == "FAILED"

    @property
    def mtbf_s(self) -> float:
        """Mean time between failures, as checkpoint.interval_steps=auto takes it."""
        return (self.ledger.wall_s + PRIOR_FAILURES * PRIOR_MTBF_S) / (len(self.failures) + PRIOR_FAILURES)
