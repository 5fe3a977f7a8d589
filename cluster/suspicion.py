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
_FROZEN = ("T", "t", "D")


class Suspicion:
    """Looks at the ranks when one is silent. `stacks` asks all nodes, and takes at most about a second."""

    def __init__(self, stacks: Callable[[], Mapping[int, RankStack]]) -> None:
        self._ask = stacks
        self._looked_at = float("-inf")
        self.silent: tuple[Silence, ...] = ()
        """The ranks that are hung for certain; empty when there is no such thing."""
        self.stacks: Mapping[int, RankStack] = {}
        """What the ranks were doing at the last look."""

    def look(self, attempt: Attempt, now: float, stall_timeout_s: float) -> bool:
        """Whether the attempt hangs: a silent rank is not let run by the kernel, or the silence is long enough by itself."""
        silent = attempt.silent(now, stall_timeout_s)
        if not silent or now - self._looked_at < LOOK_INTERVAL_S:
            return False
        self._looked_at, self.stacks = now, self._ask()
        longest_s = max(silence_s for _, _, silence_s in silent)
        is_frozen = any(stack.state in _FROZEN for stack in self.stacks.values())
        self.silent = silent if is_frozen or longest_s >= min(CERTAIN_S, stall_timeout_s) else ()
        return bool(self.silent)

    def forget(self) -> None:
        """Another attempt begins."""
        self._looked_at, self.silent, self.stacks = float("-inf"), (), {}
