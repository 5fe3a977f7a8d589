"""A silent rank is hung when the kernel says so, or when it has been silent for long; a slow one is left alone."""

from __future__ import annotations

from tests.cluster.fakes import event
from zerofleet.cluster.attempt import Attempt, Stage
from zerofleet.cluster.policy.heartbeat import Limits
from zerofleet.cluster.stacks import RankStack
from zerofleet.cluster.suspicion import CERTAIN_S, QUIET_LOOK_INTERVAL_S, Suspicion

STALL_S = 600.0
SLEEPING, STOPPED = RankStack("S", "waits", True), RankStack("T", "stopped")
WAITING = RankStack("D", "waits for a disk")


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


def test_a_rank_that_waits_for_a_disk_at_one_look_only_is_left_alone():
    """A page that a slow disk brings takes a while, and the rank goes on by itself."""
    case = Case(SLEEPING, WAITING)
    looked = case.suspicion._ask

    def once():
        case.stacks = dict(enumerate((SLEEPING, WAITING if case.looks == 0 else SLEEPING)))
        return looked()

    case.suspicion._ask = once
    assert case.until(20) is None


def test_a_rank_that_waits_for_a_device_at_two_looks_hangs():
    found = Case(SLEEPING, WAITING).until(10)
    assert found is not None and 2.5 < found <= 4


def test_what_a_rank_that_speaks_is_doing_proves_nothing():
    case = Case(SLEEPING, WAITING)
    silent = case.attempt.silent
    case.attempt.silent = lambda now, limit_s: tuple(found for found in silent(now, limit_s) if found[0] == 0)
    assert case.until(20) is None


def in_its_first_evaluation(*stacks: RankStack) -> Case:
    case = Case(*stacks)
    for rank in (0, 1):
        case.attempt.hear(event("phase", 1, rank, 101, "eval"), 10.0)
    return case


def test_a_stopped_rank_is_found_in_a_phase_that_was_never_seen():
    """Its limit is ten minutes."""
    found = in_its_first_evaluation(SLEEPING, STOPPED).until(60)
    assert found is not None and CERTAIN_S <= found <= CERTAIN_S + 1


def test_in_a_phase_that_was_never_seen_whoever_is_not_stopped_is_left_alone():
    case = in_its_first_evaluation(SLEEPING, WAITING)
    assert case.until(300) is None
    assert case.looks <= 300 / QUIET_LOOK_INTERVAL_S
