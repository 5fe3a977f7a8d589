"""What a controller waits for between its states: storage that answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.policy.backoff import Backoff
from zerofleet.trainer.errors import StorageError

_TOLD_EVERY = 5
"""Failures between two reminders."""


@dataclass(frozen=True)
class Limit:
    """How long to insist, and the setting that says so."""

    name: str
    seconds: float

    @staticmethod
    def of(config: ClusterConfig, field: str) -> Limit:
        return Limit(f"cluster.{field}", getattr(config, field))


Action = Callable[[float], None]
GiveUp = Callable[[float, str], None]


@dataclass
class Insistence:
    """Does what needs storage as soon as storage lets it. One thing at a time: a later one takes the place of the one before.

    All times that are given are monotonic seconds; what actions raise besides StorageError passes through.
    """

    say: Callable[[str], None]
    """Tells an incident."""
    is_waiting: bool = False

    def begin(self, now: float, what: str, action: Action, give_up: GiveUp, limit: Limit) -> None:
        """Tries `action(now)`, then again with backoff at each `step`; past the limit `give_up(now, why)` instead. `what` says
        for messages what cannot be done meanwhile."""
        self._what, self._action, self._give_up, self._limit = what, action, give_up, limit
        self._began, self._next_at, self._down_since = now, now, time.time()
        self._backoff, self.is_waiting = Backoff(), True
        self.step(now)

    def step(self, now: float) -> None:
        """Tries, when it is time to."""
        if now < self._next_at:
            return
        self.is_waiting = False  # an action may begin another
        try:
            self._action(now)
        except StorageError as error:
            self._failed(now, error)

    def _failed(self, now: float, error: StorageError) -> None:
        since, limit = time.strftime("%H:%M:%S", time.localtime(self._down_since)), self._limit
        if now - self._began >= limit.seconds:
            why = f"{self._what}: storage has been down since {since}, longer than {limit.name}={limit.seconds:g}"
            return self._give_up(now, f"{why}: {error}")
        if self._backoff.failures % _TOLD_EVERY == 0:
            until = f"it is tried again for up to {limit.name}={limit.seconds:g}"
            self.say(f"{self._what}: storage is down since {since}; {until}: {error}")
        self._next_at = min(now + self._backoff.next(), self._began + limit.seconds)
        self.is_waiting = True
