"""How many nodes a run has, and whether it should have more or fewer: gathers what policy/sizing.py decides on."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from zerofleet.cluster.group import Placement
from zerofleet.cluster.policy.sizing import Decision, Gathered, Presence, Running, Sizes, at_boundary, gather
from zerofleet.trainer.events import Event

_RESIZE_S = 15.0
"""What a resize is taken to cost before one was seen."""


class Sizer:
    """One driver's. Times are those of the clock that is given, in seconds."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._presence = Presence(sizes.settle_s)
        self._before, self._since, self._resize_s = 0, 0.0, _RESIZE_S
        self._grows_to = 0
        """Nodes that the next attempt was decided to have, which are to come up yet."""
        self._began_at: float | None = None
        self._durations: deque[float] = deque(maxlen=100)

    @property
    def can_grow(self) -> bool:
        """Whether more nodes than the run has could be of use."""
        return 0 < self._before < self._sizes.most_nodes

    def launched(self, nodes: int, now: float, micro_batch_size: int = 0) -> None:
        """An attempt begins with so many nodes, and with micro-batches of so many sequences; 0: of as many as before."""
        if micro_batch_size:
            self._sizes = replace(self._sizes, micro_batch_size=micro_batch_size)
        if nodes != self._before:
            self._durations.clear()
            self._since = now
        self._before, self._grows_to, self._began_at = nodes, 0, now

    def stepped(self, event: Event, now: float) -> None:
        """A step's result. The first of an attempt tells what a restart costs."""
        if self._began_at is not None:
            self._resize_s, self._began_at = now - self._began_at, None
        self._durations.append(event.duration_s)

    def saw(self, names: Iterable[str], now: float) -> None:
        """These nodes are there, the run's own and those that it could have."""
        self._presence.look(names, now)

    def gather(self, placement: Placement, since: float, now: float) -> Decision:
        """Before an attempt: begin with the nodes that are there, or wait, or give up."""
        settled = len(self._presence.settled(now))
        nodes = Gathered(max(self._before, self._grows_to), placement.num_ready, settled, since, placement.missing)
        return gather(self._sizes, nodes, now)

    def at_commit(self, steps_left: int, steps_at_risk: int, now: float) -> Decision:
        """When a step has become durable: grow, or go on as it is."""
        step_s = statistics.median(self._durations) if self._durations else 0.0
        settled = len(self._presence.settled(now))
        running = Running(self._before, settled, steps_left, step_s, self._resize_s, steps_at_risk, self._since)
        decision = at_boundary(self._sizes, running, now)
        self._grows_to = decision.nodes if decision.action == "grow" else 0
        return decision
