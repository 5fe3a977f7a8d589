"""Nodes that are about to be taken away: a preemption with notice, or somebody who drains a node."""

from __future__ import annotations

from collections.abc import Callable

from zerofleet.cluster.group import Departure

LOOK_INTERVAL_S = 2.0
"""A notice is 30 s on the clouds that give the shortest; a look is one call to Ray's head."""


class Departures:
    """Asks from time to time. `ask`: the nodes of the run that are leaving."""

    def __init__(self, ask: Callable[[], list[Departure]]) -> None:
        self._ask, self._looked_at = ask, float("-inf")

    def look(self, now: float) -> list[Departure]:
        """Those that are leaving; none between two looks. `now` is monotonic, in seconds."""
        if now - self._looked_at < LOOK_INTERVAL_S:
            return []
        self._looked_at = now
        return self._ask()
