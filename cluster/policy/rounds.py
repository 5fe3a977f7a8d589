"""When an outer round closes, and who is in it. Pure: deliveries and a clock in, a decision out.

A round closes as soon as every silo that can still take part has delivered its delta, or when `deadline_s` seconds have passed
since the first delivery and the quorum is there. Below the quorum it waits. What was rejected counts as an answer, not towards
the quorum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Decision = Literal["wait", "close"]


@dataclass
class Round:
    """One outer round that is open. `number` counts from 1; times are monotonic seconds."""

    number: int
    quorum: int
    deadline_s: float
    delivered: set[str] = field(default_factory=set)
    rejected: dict[str, str] = field(default_factory=dict)
    """Why, by silo."""
    first_at: float | None = None
    """When the first delta was complete."""

    def deliver(self, silo: str, now: float) -> None:
        self.delivered.add(silo)
        self.first_at = now if self.first_at is None else self.first_at

    def reject(self, silo: str, why: str, now: float) -> None:
        self.rejected[silo] = why
        self.first_at = now if self.first_at is None else self.first_at

    @property
    def num_answers(self) -> int:
        """Deltas that are there."""
        return len(self.delivered)

    @property
    def least(self) -> int:
        return self.quorum

    def missing(self, present: Iterable[str]) -> list[str]:
        """Of the silos that can still take part, those that have not answered."""
        return sorted(set(present) - self.delivered - self.rejected.keys())

    def decide(self, present: Iterable[str], now: float) -> Decision:
        """`present`: the silos that run, or may come back."""
        if not self.delivered and not self.rejected:
            return "wait"
        if not self.missing(present):
            # With too few left to ever make the quorum the run ends: whoever knows of all silos says so.
            return "close" if len(self.delivered) >= self.quorum or self.rejected else "wait"
        return "close" if self.is_overdue(now) and len(self.delivered) >= self.quorum else "wait"

    def is_overdue(self, now: float) -> bool:
        return self.first_at is not None and now - self.first_at >= self.deadline_s


def num_trimmed_of(fraction: float, num_silos: int) -> int:
    """How many silos a trimmed mean leaves out on either side: rounded up, so that one silo that is missing takes no protection away."""
    return math.ceil(fraction * num_silos - 1e-9)  # 0.1 x 30 is a little more than 3
