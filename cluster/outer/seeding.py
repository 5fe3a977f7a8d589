"""Where the outer weights of round 0 come from: the first silo that asks sends its own, which follow from the run's seed and are everyone's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zerofleet.cluster.outer.delivery import Initial
from zerofleet.cluster.outer.state import Arrays


class Seeding:
    """Until there are outer weights."""

    def __init__(self) -> None:
        self._silo: str | None = None
        """Who sends them."""
        self._initial: Initial | None = None

    def choose(self, silo: str) -> bool:
        """Whether this silo is to send them; from the beginning, where it had begun."""
        if self._silo not in (None, silo):
            return False
        self._silo, self._initial = silo, None
        return True

    def forget(self, silo: str) -> None:
        """It is gone: another may."""
        self._silo = None if self._silo == silo else self._silo

    def take(self, hello: Mapping[str, Any], question: Mapping[str, Any], payload: bytearray) -> Arrays | None:
        """A rank's part; the weights, when that was the last. Raises ZerofleetError."""
        if hello["silo"] != self._silo:
            return None
        if self._initial is None:
            self._initial = Initial(hello["silo"], hello["world_size"], question["sizes"])
        is_whole = self._initial.take(hello["rank"], question, payload)
        return self._initial.arrays if is_whole else None
