"""From state to state, and what is said on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from zerofleet.cluster.policy.failure import Decision
from zerofleet.cluster.stacks import RankStack
from zerofleet.cluster.state import State
from zerofleet.cluster.verdict import TIME_LIMIT, Verdict
from zerofleet.trainer.events import DRIVER, Event

_TIMEOUT = 3
"""Exit code."""
_OUTCOMES = {"retry": "Trying again", "quarantine": "Going on", "halve": "Going on", "stop": "Stopping"}


class Transitions:
    """The state of a run. Every change of it, and whatever else its controller has to say, is an event."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self.state = State.PENDING
        self.why = ""
        self.exit_code = 0
        self._limit = ""
        self._entered_at = 0.0
        self._emit = emit

    @property
    def _place(self) -> tuple[int, int]:
        """Attempt and step that events are said of."""
        raise NotImplementedError

    def _enter(self, state: State, now: float, why: str) -> None:
        before, self.state, self.why, self._entered_at = self.state, state, why, now
        ended = {"exit_code": self.exit_code} if state.is_final else {}
        self._say("state", **{"from": before.value, "to": state.value, "why": why, **ended})

    def limit(self, sentence: str) -> None:
        """The run has had its hours: says so, and a stop from here on is for that reason. Who calls this asks for one, too."""
        self._limit = sentence
        self._say("verdict", **{"class": TIME_LIMIT, "action": "stop"}, sentence=sentence, rank=None, node=None)

    def _stopped(self, now: float, why: str, exit_code: int = 0) -> None:
        self.exit_code = exit_code or (_TIMEOUT if self._limit else 0)
        self._enter(State.STOPPED, now, f"{why}; {self._limit}" if self._limit else why)

    def _fail(self, now: float, why: str, exit_code: int = 1, is_user_error: bool = False) -> None:
        self.exit_code = exit_code
        if is_user_error:
            self._say("error", type="UserError", message=why, traceback="", user=True)
        self._enter(State.FAILED, now, why)

    def _finish(self, now: float, state: State, why: str, exit_code: int) -> None:
        self._stopped(now, why, exit_code) if state is State.STOPPED else self._fail(now, why, exit_code)

    def _lose_sight(self, state: State, why: str, exit_code: int, now: float, trouble: str) -> None:
        """Storage does not say what it holds."""
        kept = "what the nodes' memory holds stays there: resume while they keep it"
        self._finish(now, state, f"{why}; {trouble}; {kept}", max(1, exit_code))

    def _say_verdict(self, verdict: Verdict, decision: Decision) -> None:
        self._say(
            "verdict",
            **{"class": verdict.kind, "action": decision.action},
            sentence=f"{verdict.sentence}. {_OUTCOMES[decision.action]}: {decision.reason}",
            rank=verdict.rank,
            node=verdict.node,
        )
        if decision.quarantine:
            self._say("incident", **{"class": "data", "message": decision.reason, "quarantine": decision.quarantine})

    def _say_stacks(self, stacks: Mapping[int, RankStack]) -> None:
        """The kernel's letter for each rank's process, and its stacks."""
        self._say("stacks", ranks={str(rank): f"{stack.state} {stack.text}" for rank, stack in stacks.items()})

    def _say_storage(self, message: str, given_up: bool = False) -> None:
        """`given_up`: it is over, for this save; else it is tried again."""
        self._say("incident", **{"class": "storage", "message": message, "given_up": given_up})

    def _say(self, kind: str, **data: Any) -> None:
        attempt, step = self._place
        self._emit(Event(kind, attempt, DRIVER, step, self.state.value.lower(), time.time(), data=data))
