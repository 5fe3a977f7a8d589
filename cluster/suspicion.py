"""From silence to certainty: a rank that says nothing may be frozen, or only slow. The kernel knows which."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zerofleet.cluster.attempt import Attempt
from zerofleet.cluster.policy.heartbeat import Silence
from zerofleet.cluster.stacks import RankStack

CERTAIN_S = 30.0
"""Silence that needs no other proof, unless a longer limit was learned: a machine that is merely overloaded has spoken by then."""
LOOK_INTERVAL_S = 1.0
"""Seconds between two looks at the ranks of a suspect attempt: a look costs them a signal each."""
QUIET_LOOK_INTERVAL_S = 10.0
"""The same while nobody is over a limit: in a phase that the run has not seen yet, the limit is minutes long."""
_STOPPED = ("T", "t")
_WAITS = "D"
"""For a disk or a device: a page that a slow disk has to bring is over by the next look, a device that has gone is not."""


class Suspicion:
    """Looks at the ranks when one is silent. `stacks` asks all nodes, and takes at most about a second."""

    def __init__(self, stacks: Callable[[], Mapping[int, RankStack]]) -> None:
        self._ask = stacks
        self._looked_at = float("-inf")
        self._waited: set[int] = set()
        """The silent ranks that the last look found waiting for a disk or a device."""
        self.silent: tuple[Silence, ...] = ()
        """The ranks that are hung for certain; empty when there is no such thing."""
        self.stacks: Mapping[int, RankStack] = {}
        """What the ranks were doing at the last look."""

    def look(self, attempt: Attempt, now: float, stall_timeout_s: float) -> bool:
        """Whether the attempt hangs: a silent rank is not let run by the kernel, or the silence is long enough by itself. Before a limit is over,
        only a process that somebody has stopped is proof."""
        silent = attempt.silent(now, stall_timeout_s)
        quiet = silent or attempt.quiet(now, CERTAIN_S)
        if not quiet or now - self._looked_at < (LOOK_INTERVAL_S if silent else QUIET_LOOK_INTERVAL_S):
            return False
        self._looked_at, self.stacks = now, self._ask()
        states = {rank: self.stacks[rank].state for rank, _, _ in quiet if rank in self.stacks}
        waiting = {rank for rank, state in states.items() if state == _WAITS}
        is_certain = any(state in _STOPPED for state in states.values())
        if silent:
            longest_s = max(silence_s for _, _, silence_s in silent)
            is_certain |= bool(waiting & self._waited) or longest_s >= min(CERTAIN_S, stall_timeout_s)
        self._waited = waiting
        self.silent = quiet if is_certain else ()
        return bool(self.silent)

    def forget(self) -> None:
        """Another attempt begins."""
        self._looked_at, self.silent, self.stacks = float("-inf"), (), {}
        self._waited.clear()
