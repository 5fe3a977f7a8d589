"""Silence: a simulated run with the noise of a real one, and a rank that freezes in it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from zerofleet.cluster.policy.heartbeat import POLL_S, Heartbeat, Limits, Sketch
from zerofleet.trainer.events import Event

NUM_RANKS = 4
STALL_S = 600.0
pytestmark = pytest.mark.timeout(60)


@dataclass
class Run:
    """What the ranks of one attempt say and when (seconds of the driver's clock), as trainer/loop.py and keeper.py do."""

    median_s: float
    seed: int = 0
    steps: int = 2000
    snapshot_every: int = 10
    first_snapshots: int = 0
    """Steps that all have a snapshot, as with `auto` before its costs are known."""
    said: list[tuple[float, Event]] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    """When each step's last collective was over."""

    def __post_init__(self) -> None:
        self.noise = random.Random(self.seed)
        self.clocks = [self.noise.uniform(-5, 5) for _ in range(NUM_RANKS)]
        self.held: list[Event] = []
        self.now, self.step = 1000.0, 0
        for phase, seconds in (("import", 2.0), ("init", 1.0), ("build", 6.0), ("load", 3.0)):
            self.begin(phase)
            self.now += self.noise.uniform(0.5, 2.0) * seconds
        self.evaluate()
        self.release()
        while self.step < self.steps:
            self.train_step()

    def say(
        self, rank: int, kind: str, phase: str, duration_s: float = 0.0, hold: bool = False, ago_s: float = 0.0
    ) -> None:
        at = self.now + self.noise.uniform(0, 0.003)
        event = Event(kind, 1, rank, self.step, phase, at + self.clocks[rank] - duration_s - ago_s, duration_s)
        self.held.append(event) if hold else self.said.append((at, event))

    def begin(self, phase: str) -> None:
        for rank in range(NUM_RANKS):
            self.say(rank, "phase", phase)

    def release(self) -> None:
        self.said += [(self.now + 0.004, event) for event in self.held]
        self.held = []

    def train_step(self) -> None:
        warm_up = (10, 4, 2, 1.5, 1.2)[self.step] if self.step < 5 else 1.0
        slowest = max(self.noise.lognormvariate(0, 0.25) for _ in range(NUM_RANKS))
        pause_s = (
            self.noise.uniform(0.2, 0.7) if self.noise.random() < 0.02 else 0.0
        )  # the garbage collector, a neighbour
        seconds = self.median_s * warm_up * slowest + pause_s
        self.now += seconds
        self.release()
        self.step += 1
        self.step_s.append(seconds)
        self.ends.append(self.now)
        for rank in range(NUM_RANKS):
            self.say(rank, "phase" if rank else "step", "step", seconds, hold=rank == 0)
        self.now += 0.005
        if self.step % 100 == 0:
            self.evaluate()
        if self.step % 200 == 0 or self.step % self.snapshot_every == 0 or self.step < self.first_snapshots:
            self.begin("save" if self.step % 200 == 0 else "snapshot")
            for rank in range(NUM_RANKS):
                self.say(rank, "snapshot", "save", ago_s=-0.3 * self.median_s)  # said by the thread that copies
            self.now += 0.05 * self.median_s
        else:
            self.release()

    def evaluate(self) -> None:
        self.begin("eval")
        seconds = 10 * self.median_s * self.noise.uniform(0.8, 1.5)
        while seconds > 5:
            self.now, seconds = self.now + 5, seconds - 5
            self.begin("eval")
        self.now += seconds
        self.say(0, "eval", "eval", 1.0, hold=True)

    def frozen(self, rank: int, step: int) -> Run:
        """The run in which a rank stops right after `step` and what it says about that; the others soon wait for it."""
        over = self.ends[step]  # of the next step, which never ends
        kept = [(at, e) for at, e in self.said if at < over and (e.rank != rank or at <= self.last_sign(rank, step))]
        return replace_said(self, kept)

    def last_sign(self, rank: int, step: int) -> float:
        return max(at for at, e in self.said if e.rank == rank and e.kind in ("phase", "step") and at < self.ends[step])


def replace_said(run: Run, said: list[tuple[float, Event]]) -> Run:
    changed = object.__new__(Run)
    changed.__dict__ |= run.__dict__ | {"said": said}
    return changed


@dataclass
class Driver:
    """Polls as the controller does. Every event travels up to POLL_S, in order for each rank."""

    run: Run
    limits: Limits
    suspended: tuple[float, float] = (0.0, 0.0)
    """From when to when it does not run."""
    seed: int = 1

    def listen(self) -> tuple[float, tuple] | None:
        """When somebody was found silent, and who; None when the run was heard to its end."""
        noise, arrives = random.Random(self.seed), dict.fromkeys(range(NUM_RANKS), 0.0)
        arrivals = []
        for at, event in sorted(self.run.said, key=lambda said: said[0]):
            arrives[event.rank] = max(arrives[event.rank], at + noise.uniform(0, POLL_S))
            arrivals.append((arrives[event.rank], event))
        arrivals.sort(key=lambda arrival: arrival[0])
        heartbeat, now, heard = Heartbeat(self.limits, NUM_RANKS, 1000.0), 1000.0, 0
        while heard < len(arrivals) or self.is_frozen:
            wait_s = min(POLL_S, max(0.01, heartbeat.patience_s(now)))
            now = min(now + wait_s, arrivals[heard][0] if heard < len(arrivals) else now + wait_s)
            now += 0.005  # a poll's own time
            if self.suspended[0] <= now < self.suspended[1]:
                now = self.suspended[1]
            while heard < len(arrivals) and arrivals[heard][0] <= now:
                heartbeat.hear(arrivals[heard][1], now)
                heard += 1
            if silent := heartbeat.silent(now):
                return now, silent
        return None

    @property
    def is_frozen(self) -> bool:
        return self.run.said[-1][1].step < self.run.steps


@pytest.mark.parametrize("snapshot_every", [1, 10])
@pytest.mark.parametrize("median_s", [0.02, 0.3, 4.0])
def test_no_false_alarm_in_2000_steps_with_saves_and_evals(median_s, snapshot_every):
    run = Run(median_s, seed=0, snapshot_every=snapshot_every)
    assert Driver(run, Limits(STALL_S, NUM_RANKS), seed=0).listen() is None


def bound_s(run: Run, step: int) -> float:
    return max(2.0, 3 * float(np.percentile(run.step_s[:step], 99)))


@pytest.mark.parametrize("step", [205, 777])
@pytest.mark.parametrize("median_s", [0.02, 0.3, 4.0])
def test_a_frozen_rank_is_noticed_within_three_times_the_p99_step_time(median_s, step):
    for rank in (0, 3):
        run = Run(median_s, steps=step + 2)
        noticed = Driver(run.frozen(rank, step), Limits(STALL_S, NUM_RANKS)).listen()
        assert noticed is not None
        after_s = noticed[0] - run.last_sign(rank, step)
        assert 0.9 * 1.5 < after_s <= bound_s(run, step), (after_s, bound_s(run, step))
        assert rank in [silence[0] for silence in noticed[1]]


@pytest.mark.parametrize("median_s", [0.3, 4.0])
def test_with_a_snapshot_after_every_step_the_bound_is_the_same(median_s):
    run = Run(median_s, snapshot_every=1, steps=803)
    noticed = Driver(run.frozen(2, 801), Limits(STALL_S, NUM_RANKS)).listen()
    # A snapshot's own stall precedes the step, so that its silences are a little longer than steps are.
    assert noticed[0] - run.last_sign(2, 801) <= 1.1 * bound_s(run, 801)


def test_snapshots_that_become_rare_are_no_reason_to_expect_the_next_step_at_once():
    run = Run(6.0, first_snapshots=40, snapshot_every=150, steps=300)
    assert Driver(run, Limits(STALL_S, NUM_RANKS)).listen() is None


def test_a_suspended_driver_does_not_blame_the_ranks():
    run = Run(0.3, steps=900)
    pause = (run.ends[500] + 0.1, run.ends[500] + 60)
    assert Driver(run, Limits(STALL_S, NUM_RANKS), suspended=pause).listen() is None
    noticed = Driver(run.frozen(1, 500), Limits(STALL_S, NUM_RANKS), suspended=pause).listen()
    assert noticed is not None and noticed[0] - pause[1] <= bound_s(run, 500)


def test_the_next_attempt_knows_the_limits_and_allows_for_its_warm_up():
    limits = Limits(STALL_S, NUM_RANKS)
    for seed in range(2):
        assert Driver(Run(0.5, seed, steps=150), limits).listen() is None
    run = Run(0.5, seed=9)
    noticed = Driver(run.frozen(1, 5), limits).listen()
    assert noticed[0] - run.last_sign(1, 5) <= bound_s(run, 150)


@pytest.mark.parametrize("jump_s", [-100.0, -1.0, 1.0, 100.0])
def test_a_clock_that_jumps_raises_no_alarm_and_hides_no_frozen_rank(jump_s):
    run = Run(0.3, steps=900)
    said = [(at, replace(e, start=e.start + jump_s) if e.rank == 2 and e.step >= 400 else e) for at, e in run.said]
    jumped = replace_said(run, said)
    assert Driver(jumped, Limits(STALL_S, NUM_RANKS)).listen() is None
    noticed = Driver(jumped.frozen(2, 605), Limits(STALL_S, NUM_RANKS)).listen()
    assert noticed[0] - run.last_sign(2, 605) <= bound_s(run, 605)


# -- limits --------------------------------------------------------------------------------------------------------
def limits_after(**seconds) -> Limits:
    """Limits of one rank that has seen each phase so long, often."""
    limits = Limits(STALL_S, 1)
    for phase, value in seconds.items():
        for _ in range(200):
            limits.learn(phase.replace("_", "-"), value)
    return limits


def test_what_was_never_seen_has_the_configured_limit():
    assert Limits(STALL_S, 1).limit_s("step") == STALL_S
    assert limits_after(step=0.1).limit_s("eval") == STALL_S


@pytest.mark.parametrize(
    ("phase", "seen", "expected"),
    [
        ("step", {"step": 0.1}, 2.0),
        ("step", {"step": 5.0}, 15.0),
        ("step", {"step": 500.0}, STALL_S),
        ("eval", {"step": 1.0, "eval": 5.0}, 15.0),
        ("eval", {"step": 5.0, "eval": 0.1}, 15.0),
        ("snapshot", {"step": 0.1, "snapshot": 0.1}, 2.0),
        ("save", {"step": 0.1, "save": 1.0}, 120.0),
        ("load", {"load": 70.0}, 210.0),
        ("warm-up", {"warm_up": 1.0, "step": 50.0}, 30.0),
    ],
)
def test_limits(phase, seen, expected):
    assert limits_after(**seen).limit_s(phase) == pytest.approx(expected, rel=0.04)


def test_a_few_observations_are_trusted_less():
    limits, found = Limits(STALL_S, 1), []
    for _ in range(9):
        limits.learn("step", 1.0)
        found.append(limits.limit_s("step"))
    assert found[0] == pytest.approx(24, rel=0.04) and found[3] == pytest.approx(6, rel=0.04)
    assert found[7] == found[8] == pytest.approx(3, rel=0.04)


def test_the_limit_never_exceeds_the_configured_one():
    limits = Limits(1.0, 1)
    limits.learn("step", 0.1)
    assert limits.limit_s("step") == 1.0


# -- signs ---------------------------------------------------------------------------------------------------------
TRAINED = tuple((0.1 * number, "phase", "step", 0) for number in range(1, 11))
"""Ten steps of rank 0."""


def listen(*said: tuple[float, str, str, int], until_s: float, num_ranks: int = 1) -> tuple[Heartbeat, tuple]:
    """Four looks a second at ranks that say (seconds, kind, phase, rank). Who is silent in the end."""
    heartbeat, left = Heartbeat(limits_after(step=0.2, eval=0.2, snapshot=0.2, save=0.2), num_ranks, 0.0), list(said)
    for look in range(1, int(until_s * 4) + 1):
        while left and left[0][0] <= look / 4:
            at, kind, phase, rank = left.pop(0)
            heartbeat.hear(Event(kind, 1, rank, 10, phase, at), at)
        found = heartbeat.silent(look / 4)
    return heartbeat, found


@pytest.mark.parametrize("kind", ["written", "unwritten", "checkpoint", "error", "snapshot"])
def test_what_others_say_of_a_rank_is_no_sign_of_its_life(kind):
    assert listen(*TRAINED, (2.5, kind, "save", 0), until_s=3.25)[1]


def test_any_word_of_the_rank_itself_is():
    assert not listen(*TRAINED, (2.5, "info", "step", 0), until_s=4.25)[1]


def test_a_rank_that_has_exited_is_not_silent():
    heartbeat, silent = listen(*TRAINED, (2.0, "exit", "end", 0), until_s=700)
    assert not silent
    assert heartbeat.patience_s(700) == float("inf")


def test_a_save_that_waits_for_storage_is_given_time_and_one_in_the_background_is_not():
    assert not listen(*TRAINED, (1.1, "phase", "save", 0), until_s=60)[1]
    assert listen(*TRAINED, (1.1, "phase", "save", 0), (1.2, "snapshot", "save", 0), until_s=4)[1]


def test_who_is_frozen_is_among_the_silent_although_another_was_overdue_first():
    steps = [(at, kind, phase, rank) for at, kind, phase, _ in TRAINED for rank in range(3)]
    # Rank 1 stops in a save, for which it has two minutes; rank 2 spoke just now.
    said = [*steps, (1.1, "phase", "save", 1), (2.75, "phase", "save", 2)]
    assert [rank for rank, _, _ in listen(*said, until_s=3.25, num_ranks=3)[1]] == [0, 1]


# -- cost ----------------------------------------------------------------------------------------------------------
def test_a_sketch_is_close_to_the_quantile_and_never_above_it():
    values = np.random.default_rng(0).lognormal(0, 1, 5000)
    sketch = Sketch(window=10_000)
    for value in values:
        sketch.add(float(value))
    true = float(np.percentile(values, 99, method="lower"))
    assert true / 1.05 <= sketch.p99_s() <= true


def test_a_sketch_forgets():
    sketch = Sketch(window=100)
    for value in [10.0] * 100 + [1.0] * 900:
        sketch.add(value)
    assert sketch.p99_s() == pytest.approx(1.0, rel=0.04)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-9, 1e9])
def test_a_sketch_takes_any_number(value):
    sketch = Sketch(window=2)
    for _ in range(5):
        sketch.add(value)
    assert 0 < sketch.p99_s() < 50_000


def test_10_000_ranks_take_less_than_a_second_per_poll():
    heartbeat = Heartbeat(Limits(STALL_S, 10_000), 10_000, 0.0)
    for number in range(4):
        events = [Event("phase", 1, rank, number, "step", float(number), 0.9) for rank in range(10_000)]
        began = time.process_time()
        for event in events:
            heartbeat.hear(event, number + 1.0)
        heartbeat.silent(number + 1.0)
        heartbeat.patience_s(number + 1.0)
        assert time.process_time() - began < 5.0, "the bar is 1 s on a machine of its own"
