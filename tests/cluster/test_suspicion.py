"""A silent rank is hung when the kernel says so, or when it has been silent for long; a slow one is left alone."""

from __future__ import annotations

from tests.cluster.fakes import event
from zerofleet.cluster.attempt import Attempt, Stage
from zerofleet.cluster.policy.heartbeat import Limits
from zerofleet.cluster.stacks import RankStack
from zerofleet.cluster.suspicion import CERTAIN_S, Suspicion

STALL_S = 600.0
SLEEPING, STOPPED = RankStack("S", "waits", True), RankStack("T", "stopped")


class Case:
    """Two ranks that make a step in each tenth of a second up to `now`, then nothing."""

    def __init__(self, *stacks: RankStack) -> None:
        self.looks = 0
        self.stacks = dict(enumerate(stacks))
        self.suspicion = Suspicion(self._ask)
        self.attempt = Attempt(1, Stage.TRAIN, None, 2, 0.0, limits=Limits(STALL_S, 2))
        for number in range(1, 101):
            for rank in (0, 1):
                sign = event("phase", 1, rank, number)
                self.attempt.hear(
                    sign.__class__(**{**sign.__dict__, "start": number / 10, "duration_s": 0.1}), number / 10
                )

    def _ask(self):
        self.looks += 1
        return self.stacks

    def until(self, seconds: float) -> float | None:
        """When the hang is certain, looked at every half second for so long."""
        for half in range(int(2 * seconds)):
            now = 10.0 + half / 2
            if self.suspicion.look(self.attempt, now, STALL_S):
                return now - 10.0
        return None


def test_a_rank_that_the_kernel_stopped_is_certain_at_the_first_look():
    case = Case(SLEEPING, STOPPED)
    found = case.until(5)
    assert found is not None and found <= 2.5
    assert {rank for rank, _, _ in case.suspicion.silent} == {0, 1}
    assert case.suspicion.stacks[1].state == "T"


def test_ranks_that_are_only_slow_have_half_a_minute():
    found = Case(SLEEPING, SLEEPING).until(60)
    assert found is not None and CERTAIN_S <= found <= CERTAIN_S + 3


def test_looks_are_rare():
    case = Case(SLEEPING, SLEEPING)
    case.until(20)
    assert 10 <= case.looks <= 20


def test_who_speaks_again_is_no_longer_suspected():
    case = Case(SLEEPING, SLEEPING)
    assert case.until(5) is None
    for rank in (0, 1):
        case.attempt.hear(event("phase", 1, rank, 101), 15.0)
    assert not case.suspicion.look(case.attempt, 15.5, STALL_S)


def test_another_attempt_begins_without_suspicion():
    case = Case(SLEEPING, STOPPED)
    case.until(5)
    case.suspicion.forget()
    assert case.suspicion.silent == () and case.suspicion.stacks == {}
