"""How far a round of secure aggregation is, and when it goes on without whom. Pure: answers and a clock in, a phase out.

A round goes through `keys` (each silo's public keys), `shares` (sealed shares of its secrets), `deltas` (masked), `reveal` (shares that take the masks off
the sum) and ends in `sum`, or in `failed` where too few silos were left. The first phase waits for every silo that can still take part, and for
`least` of them in any case: who comes later is in the next round. Each phase after it asks those that answered the one before it, and lasts
until all that still can have answered, or `deadline_s` seconds have passed: then all but a third must have, and of deltas the quorum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["keys", "shares", "deltas", "reveal", "sum", "failed"]
_NEXT: dict[Phase, Phase] = {"keys": "shares", "shares": "deltas", "deltas": "reveal", "reveal": "sum"}


@dataclass
class Masking:
    """Of one round; times are monotonic seconds."""

    least: int
    """Fewest silos that take part."""
    quorum: int
    """Fewest deltas that make an outer step."""
    deadline_s: float
    phase: Phase = "keys"
    threshold: int = 0
    """Fewest that must answer in each phase after the first."""
    answered: dict[Phase, set[str]] = field(default_factory=lambda: {"keys": set()})
    """Who did, by phase."""
    _gone: set[str] = field(default_factory=set)
    """Whose secrets are lost: they can answer nothing more in this round."""
    _excused: set[str] = field(default_factory=set)
    """Who has no delta of use."""
    _began_at: float | None = None

    def answer(self, phase: Phase, silo: str, now: float) -> bool:
        """Whether it was asked that in this phase, and so counts."""
        if phase != self.phase or silo not in (self._asked() if phase != "keys" else {silo}):
            return False
        self.answered[phase].add(silo)
        self._began_at = now if self._began_at is None else self._began_at
        return True

    def begins_anew(self, silo: str) -> None:
        """Another attempt of it: while keys are gathered it may give new ones, later it is out of this round. What it has answered stays."""
        if self.phase == "keys":
            self.answered["keys"].discard(silo)
        else:
            self._gone.add(silo)

    def excuse(self, silo: str) -> None:
        """Its delta is of no use: nobody waits for it."""
        self._excused.add(silo)

    def advance(self, present: Iterable[str], now: float) -> Phase:
        """The phase that the round is in. `present`: silos that run, or may come back."""
        while self.phase in _NEXT and (found := self._next(set(present), now)) != self.phase:
            if found == "shares":
                from_all = len(self.answered["keys"])
                self.threshold = from_all - from_all // 3
            self.phase, self._began_at = found, now
            self.answered.setdefault(found, set())
        return self.phase

    @property
    def num_answers(self) -> int:
        """In the phase that the round is in."""
        return len(self.answered[self.phase])

    def missing(self, present: Iterable[str]) -> list[str]:
        """Who is waited for."""
        here = set(present)
        asked = here if self.phase == "keys" else self._asked() & here
        return sorted(asked - self.answered[self.phase])

    def is_overdue(self, now: float) -> bool:
        return self._began_at is not None and now - self._began_at >= self.deadline_s

    def _asked(self) -> set[str]:
        """Of a phase after the first."""
        match self.phase:
            case "shares":
                return self.answered["keys"] - self._gone
            case "deltas":
                return self.answered["shares"] - self._gone - self._excused
            case "reveal":
                return self.answered["shares"] - self._gone
        return set()

    def _next(self, present: set[str], now: float) -> Phase:
        have = self.num_answers
        if self.phase == "reveal" and have >= self.threshold:
            return "sum"  # more would not help
        if self.missing(present) and not self.is_overdue(now):
            return self.phase
        if self.phase == "keys":
            return "shares" if have >= self.least else "keys"
        enough = max(self.threshold, self.quorum if self.phase == "deltas" else 0)
        return _NEXT[self.phase] if have >= enough else "failed"
