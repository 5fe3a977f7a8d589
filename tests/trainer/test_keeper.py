"""Which step is kept how, and when its results are told."""

from __future__ import annotations

import pytest

from zerofleet.trainer.checkpoint.cadence import Cadence
from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.events import Control
from zerofleet.trainer.keeper import Keeper
from zerofleet.trainer.reporter import Reporter, no_fault
from zerofleet.trainer.world import World


class Saver:
    def __init__(self, is_background: bool, has_buddy: bool = False) -> None:
        self.is_background, self.has_buddy, self.has_room, self.has_third = is_background, has_buddy, False, True
        self.replicated: list[int] = []
        self.saved: list[tuple[int, bool]] = []
        self.recent: list[str] = []

    def save(self, step, durable, recent, replicate, waits, probe_loss) -> None:
        self.probed = probe_loss
        self.waited = waits
        self.replicated += [step] if replicate else []
        self.saved.append((step, durable))
        self.recent = [(event.kind, event.step) for event in recent]

    def settle(self) -> float:
        return 0.5


class Rank:
    """Rank 0 at the end of its steps."""

    def __init__(self, is_background: bool = True, has_buddy: bool = False, **checkpoint) -> None:
        self.events = []
        self.reporter = Reporter(World(0, 0, 0, 1, "n", 1), self.events.append, no_fault)
        self.saver = Saver(is_background, has_buddy)
        self.keeper = Keeper(self.reporter, self.saver, Cadence(CheckpointConfig(**checkpoint)), lambda: 7.0)

    def step(self, asked: Control = Control()) -> Control:
        control = self.keeper.due(asked)
        self.keeper.settle()
        self.reporter.release()
        self.reporter.step += 1
        self.keeper.stepped(1.0)
        self.reporter.hold("step", "step", 0.0, 1.0)
        self.keeper.keep(control)
        return control

    def told(self) -> list[int]:
        return [event.step for event in self.events if event.kind == "step"]


def test_a_step_that_is_not_kept_is_told_at_once():
    rank = Rank(interval_steps=0, snapshot_interval_steps=0)
    rank.step()
    assert rank.told() == [1] and rank.saver.saved == []


def test_what_becomes_durable_is_probed_and_a_mere_snapshot_is_not():
    rank = Rank(interval_steps=2, snapshot_interval_steps=1)
    rank.step()
    assert rank.saver.saved == [(1, False)] and rank.saver.probed is None
    rank.step()
    assert rank.saver.saved[1:] == [(2, True)] and rank.saver.probed == 7.0


def test_a_step_that_is_kept_is_told_when_every_rank_has_settled():
    rank = Rank(interval_steps=0, snapshot_interval_steps=1)
    rank.step()
    assert rank.told() == []
    rank.step()
    assert rank.told() == [1] and rank.saver.recent == [("step", 1), ("step", 2)]


def test_a_step_that_waited_for_the_disk_is_told_at_once():
    rank = Rank(is_background=False, interval_steps=1, snapshot_interval_steps=0)
    rank.step()
    rank.step()
    assert rank.told() == [1, 2] and rank.saver.saved == [(1, True), (2, True)]


def test_a_save_that_is_asked_for_waits_too_and_a_stop_does_not():
    rank = Rank(interval_steps=2, snapshot_interval_steps=0)
    rank.step()
    rank.step()
    rank.step(Control("save"))
    rank.step()
    assert rank.saver.saved == [(2, True)]
    rank.step(Control(settled_step=2))
    assert rank.saver.saved == [(2, True), (5, True)], "once the one before is settled"
    rank.step(Control(settled_step=5))
    assert rank.saver.saved[2:] == [(6, True)], "and once: this one was due by itself"
    rank.step(Control("save"))
    rank.step(Control("stop"))
    assert rank.saver.saved[3:] == [(8, True)]


def test_a_save_waits_until_the_one_before_is_settled():
    rank = Rank(interval_steps=2, snapshot_interval_steps=0)
    for _ in range(5):
        rank.step()
    assert rank.saver.saved == [(2, True)]
    rank.step(Control(settled_step=2))
    assert rank.saver.saved == [(2, True), (6, True)]


@pytest.mark.parametrize("action", ["save", "stop"])
def test_a_request_is_stronger_than_what_is_due(action):
    rank = Rank(interval_steps=0, snapshot_interval_steps=1)
    assert rank.step(Control(action)).action == action
    assert rank.saver.saved == [(1, True)]


def test_a_state_that_came_from_memory_is_not_durable_yet():
    rank = Rank(interval_steps=10, snapshot_interval_steps=0)
    rank.reporter.step = 7
    rank.keeper.restored(7, from_memory=True)
    assert rank.keeper.saved_step is None
    rank.keeper.keep(Control("save"))
    assert rank.saver.saved == [(7, True)]
    rank.keeper.keep(Control("save"))
    assert rank.saver.saved == [(7, True)], "once"


def test_a_state_that_came_from_storage_is():
    rank = Rank(interval_steps=10, snapshot_interval_steps=0)
    rank.reporter.step = 7
    rank.keeper.restored(7, from_memory=False)
    rank.keeper.keep(Control("save"))
    assert rank.saver.saved == []


def test_the_buddy_gets_the_next_step_when_it_has_the_one_before():
    rank = Rank(has_buddy=True, interval_steps=0, snapshot_interval_steps=1)
    assert [rank.step().action for _ in range(3)] == ["replicate", "snapshot", "snapshot"]
    assert [rank.step(Control(replicated_step=1)).action, rank.step().action] == ["replicate", "snapshot"]
    assert rank.saver.replicated == [1, 4] and len(rank.saver.saved) == 5


def test_what_goes_to_storage_goes_to_the_buddy_too():
    rank = Rank(has_buddy=True, interval_steps=2, snapshot_interval_steps=1)
    assert [rank.step(Control(replicated_step=1)).action for _ in range(2)] == ["replicate", "save"]
    assert rank.saver.replicated == [1, 2]


def test_without_a_buddy_nothing_is_sent():
    rank = Rank(interval_steps=0, snapshot_interval_steps=1)
    assert [rank.step().action for _ in range(3)] == ["snapshot"] * 3


@pytest.mark.parametrize(("has_room", "meanwhile"), [(False, "snapshot"), (True, "replicate")])
def test_while_a_save_is_on_its_way_another_is_sent_only_with_room_for_it(has_room, meanwhile):
    rank = Rank(has_buddy=True, interval_steps=3, snapshot_interval_steps=1)
    rank.keeper._cadence.has_room = has_room
    asked = [Control(), Control(replicated_step=1), Control(replicated_step=2), Control(replicated_step=3)]
    assert [rank.step(control).action for control in asked] == ["replicate", "replicate", "save", meanwhile]
    assert rank.step(Control(settled_step=3, replicated_step=4)).action == "replicate"


def test_only_the_last_save_waits_for_a_buffer():
    rank = Rank(interval_steps=1, snapshot_interval_steps=0)
    waited = []
    for control, is_last in ((Control("save"), False), (Control("stop"), False), (Control("save"), True)):
        rank.reporter.step += 1
        rank.keeper.keep(control, is_last)
        waited.append(rank.saver.waited)
    assert waited == [False, True, True]


def test_snapshots_are_as_far_apart_as_they_should_be():
    rank = Rank(interval_steps=0, snapshot_interval_steps=3)
    for _ in range(10):
        rank.step()
    assert rank.saver.saved == [(3, False), (6, False), (9, False)]


def test_what_a_snapshot_costs_is_its_call_and_the_wait_for_it_once():
    rank = Rank(interval_steps=0, snapshot_interval_steps=3)
    costs = []
    rank.keeper._cadence.stalled = costs.append
    for _ in range(8):
        rank.step()
    assert [round(cost, 1) for cost in costs] == [0.5, 0.5]


def test_where_nothing_is_kept_in_memory_a_snapshot_that_is_due_costs_nothing_and_counts_for_nothing():
    rank = Rank(is_background=False, interval_steps=3, snapshot_interval_steps=1)
    costs = []
    rank.keeper._cadence.stalled = costs.append
    for _ in range(7):
        rank.step()
    assert rank.saver.saved == [(3, True), (6, True)] and len(costs) == 2


def test_standing_still_for_a_save_is_told_once():
    rank = Rank(interval_steps=0, snapshot_interval_steps=1)
    rank.step()
    rank.step()
    assert 1.0 < rank.keeper.take_stall_s() < 1.5, "two settles of half a second, and two saves"
    assert rank.keeper.take_stall_s() == 0.0


@pytest.mark.parametrize("action", ["save", "stop"])
def test_what_is_to_become_durable_goes_to_the_buddy_too(action):
    """A node that is taken away before its part is in storage takes it along."""
    rank = Rank(has_buddy=True, interval_steps=0, snapshot_interval_steps=0)
    rank.step(Control(action))
    assert rank.saver.replicated == [1]
