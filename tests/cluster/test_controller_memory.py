"""The controller and the agents' memory: where attempts start, when a save counts, what is rescued before the end."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.cluster.fakes import FakeSelection, Harness, ended, error_of, event, exit_of, harness, step
from zerofleet.cluster.commits import Outcome
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.group import Departure, Placement
from zerofleet.cluster.hooks import Origin
from zerofleet.cluster.spec import SnapshotInfo
from zerofleet.cluster.state import State
from zerofleet.trainer.checkpoint.snapshot import SnapshotMeta
from zerofleet.trainer.errors import Superseded
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId


def snapshot(attempt: int, number: int, durable: bool, world_size: int = 2):
    """All ranks hold a step in memory."""
    data = {"path": "x", "durable": durable, "checkpoint": asdict(CheckpointId(number, attempt))}
    return [event("snapshot", attempt, rank, number, "snapshot", **data) for rank in range(world_size)]


def durable(number: int, attempt: int = 1) -> Outcome:
    return Outcome(CheckpointId(number, attempt), True, num_bytes=10, seconds=1.0)


def lost(number: int, attempt: int = 1) -> Outcome:
    return Outcome(CheckpointId(number, attempt), False, "the disk is full")


def in_memory(number: int, attempt: int = 1) -> FakeSelection:
    return FakeSelection(CheckpointId(number, attempt), found=1, in_memory=True)


def stored(number: int, attempt: int = 1) -> FakeSelection:
    return FakeSelection(CheckpointId(number, attempt), found=1)


def until_waiting(h: Harness) -> None:
    for _ in range(20):
        h.controller.step(h.clock.now)


def test_a_killed_rank_restarts_from_memory():
    def train(attempt):
        if attempt == 1:
            return [step(1, 11), snapshot(1, 11, False), [exit_of(1, 1, None, 9)]]
        return [step(2, 12), ended(2, "finished", 12)]

    h = harness(train, selections=[FakeSelection(), in_memory(11)])
    assert h.run().state is State.FINISHED
    assert h.claims == [(1, None), (2, Origin(CheckpointId(11, 1), in_memory=True))]
    assert "from the snapshot of step 11 (attempt 1)" in h.said("state")[-3].data["why"]


def test_a_snapshot_that_cannot_be_used_is_left_out_and_the_checkpoint_of_that_step_is_not():
    bad = {"step": 11, "attempt": 1, "reason": "digests"}

    def train(attempt):
        if attempt == 1:
            return [step(1, 11), [exit_of(1, 1, None, 9)]]
        if attempt == 2:
            return [[error_of(2, 0, type="CheckpointUnusable", checkpoint=bad)]]
        return [step(3, 12), ended(3, "finished", 12)]

    h = harness(train, selections=[FakeSelection(), in_memory(11), stored(11)])
    assert h.run().state is State.FINISHED
    assert h.excluded[-1] == {Origin(CheckpointId(11, 1), in_memory=True)}
    assert h.claims[-1] == (3, Origin(CheckpointId(11, 1)))


def test_a_finished_run_waits_until_its_last_state_is_durable():
    h = harness(lambda a: [step(1, 2), snapshot(1, 2, True), ended(1, "finished", 2)])
    until_waiting(h)
    assert h.controller.state is State.RUNNING
    h.outcomes = [durable(2)]
    assert h.run().state is State.FINISHED
    (checkpoint,) = h.said("checkpoint")
    assert (checkpoint.step, checkpoint.data["path"]) == (2, CheckpointId(2, 1).folder)
    assert not h.controller.keep_snapshots


def test_a_last_state_that_storage_never_takes_ends_the_run_in_time():
    config = ClusterConfig(stop_timeout_s=30)
    h = harness(lambda a: [step(1, 2), snapshot(1, 2, True), ended(1, "finished", 2)], config=config)
    started = h.clock.now
    h.selections = [FakeSelection(), in_memory(2)]
    controller = h.run()
    assert controller.state is State.FAILED and h.clock.now - started < 70
    assert "it was not within cluster.stop_timeout_s=30" in controller.why and controller.keep_snapshots


def test_a_stop_waits_too_and_names_the_step():
    h = harness(lambda a: [step(1, 5)])
    h.run_until("RUNNING")
    h.group.on_control["stop"] = [snapshot(1, 6, True), ended(1, "stopped", 6)]
    h.requests = ["stop"]
    until_waiting(h)
    assert h.controller.state is State.DRAINING
    h.outcomes = [durable(6)]
    assert h.run().state is State.STOPPED
    assert h.controller.why == "stopped; the checkpoint of step 6 is durable" and h.controller.exit_code == 0


def test_rank_0_hears_what_has_come_of_a_save():
    h = harness(lambda a: [step(1, 4), snapshot(1, 4, True), step(1, 5)])
    h.run_until("RUNNING")
    h.outcomes = [lost(4)]
    until_waiting(h)
    assert [control.settled_step for control in h.group.heard_controls] == [4]
    (incident,) = h.said("incident")
    assert "step 4 did not become durable: the disk is full" in incident.data["message"] and incident.data["given_up"]
    assert h.controller.state is State.RUNNING, "training goes on"


def test_a_last_state_that_cannot_be_made_durable_is_tried_once_more_from_memory_and_fails_the_run():
    h = harness(lambda a: [step(1, 2), snapshot(1, 2, True), ended(1, "finished", 2)])
    until_waiting(h)
    h.selections = [in_memory(2)]
    h.outcomes = [lost(2)]
    until_waiting(h)
    assert h.group.persisted == [CheckpointId(2, 1)]
    h.outcomes = [lost(2)]
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.FAILED, 1)
    assert "step 2 is in the nodes' memory only (the disk is full)" in controller.why
    assert controller.keep_snapshots


@pytest.mark.parametrize(("how", "state"), [("finished", State.FINISHED), ("stopped", State.STOPPED)])
def test_a_last_state_that_is_durable_at_the_second_try_ends_the_run_as_it_should(how, state):
    h = harness(lambda a: [step(1, 2), snapshot(1, 2, True), ended(1, how, 2)])
    until_waiting(h)
    h.selections = [in_memory(2)]
    h.outcomes = [lost(2)]
    until_waiting(h)
    h.outcomes = [durable(2)]
    controller = h.run()
    assert (controller.state, controller.exit_code, controller.keep_snapshots) == (state, 0, False)


def failing(attempt):
    return [step(attempt, 12), snapshot(attempt, 12, False), [error_of(attempt, 0)]]


def test_before_a_run_fails_what_only_memory_holds_is_made_durable():
    h = harness(failing, selections=[FakeSelection(), in_memory(12)], config=ClusterConfig(max_failures=0))
    h.run_until("RECOVERING")
    until_waiting(h)
    assert h.group.persisted == [CheckpointId(12, 1)] and h.controller.state is State.RECOVERING
    h.outcomes = [durable(12)]
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.FAILED, 1)
    assert controller.why.endswith("step 12, which was in memory, is durable now")
    assert not controller.keep_snapshots


def test_a_rescue_has_an_end():
    config = ClusterConfig(max_failures=0, stop_timeout_s=9)
    h = harness(failing, selections=[FakeSelection(), in_memory(12)], config=config)
    h.run_until("RECOVERING")
    started = h.clock.now
    h.controller.step(h.clock.now)
    h.selections = [FakeSelection()]
    controller = h.run()
    assert controller.state is State.FAILED and h.clock.now - started < 12
    assert "not within cluster.stop_timeout_s=9" in controller.why and "resume while they keep it" in controller.why
    assert controller.keep_snapshots


def test_a_rank_that_dies_while_draining_costs_no_snapshot():
    h = harness(lambda a: [step(1, 5), snapshot(1, 5, False)], selections=[FakeSelection(), in_memory(5)])
    h.run_until("RUNNING")
    h.group.on_control["stop"] = [[exit_of(1, 1, None, 9)]]
    h.requests = ["stop"]
    until_waiting(h)
    assert h.group.persisted == [CheckpointId(5, 1)]
    h.selections, h.outcomes = [stored(5)], [durable(5)]
    assert h.run().state is State.STOPPED


def test_a_save_of_the_attempt_before_may_still_become_durable():
    def train(attempt):
        if attempt == 1:
            return [step(1, 11), snapshot(1, 11, True), [exit_of(1, 1, None, 9)]]
        return [step(2, 12)]

    h = harness(train, selections=[FakeSelection(), in_memory(11)])
    h.run_until("RUNNING")
    h.run_until("STARTING")
    h.run_until("RUNNING")
    h.outcomes = [durable(11)]
    until_waiting(h)
    (checkpoint,) = h.said("checkpoint")
    assert (checkpoint.attempt, checkpoint.step) == (1, 11)


def test_a_state_that_came_from_memory_is_not_durable_before_it_is_saved_again():
    def train(attempt):
        return [snapshot(2, 20, True), ended(2, "finished", 20)]

    h = harness(train, selections=[in_memory(20)], last_attempt=1)
    until_waiting(h)
    assert h.controller.state is not State.FINISHED
    h.outcomes = [durable(20, attempt=2)]
    assert h.run().state is State.FINISHED


def test_what_storage_said_is_in_the_reason_of_the_end():
    config = ClusterConfig(stop_timeout_s=9)
    full = event("incident", 1, 0, 2, "save", **{"class": "storage", "message": "the disk is full"})
    h = harness(lambda a: [step(1, 2), snapshot(1, 2, True), [full], ended(1, "finished", 2)], config=config)
    h.outcomes = [durable(1)]
    h.selections = [FakeSelection(), in_memory(2)]
    assert "the disk is full" in h.run().why


def test_a_save_that_is_on_its_way_is_no_checkpoint_that_was_skipped():
    def train(attempt):
        if attempt == 1:
            return [step(1, 10), snapshot(1, 10, True), step(1, 11), [exit_of(1, 1, None, 9)]]
        return [step(2, 12), ended(2, "finished", 12)]

    why = "it has no manifest.json: it was never completed"
    skipped = ((CheckpointId(10, 1), why), (CheckpointId(9, 1), why))
    start = FakeSelection(CheckpointId(10, 1), skipped, found=1, in_memory=True)
    h = harness(train, selections=[FakeSelection(), start])
    h.run()
    messages = [event.data["message"] for event in h.said("incident")]
    assert messages == [f"the checkpoint of step 9 (attempt 1) was skipped: {why}"]


def test_a_node_that_is_lost_while_the_state_is_chosen_is_replaced_before_anything_is_claimed():
    """What it holds would be passed over, and the claim would keep it out for good."""

    def train(attempt):
        if attempt == 1:
            return [step(1, 11), snapshot(1, 11, False), [exit_of(1, 1, None, 9)]]
        return [step(2, 12), ended(2, "finished", 12)]

    h = harness(train, selections=[FakeSelection(), FakeSelection(), in_memory(11)])

    def lose() -> list:
        h.group.is_whole = len(h.claims) != 1 or h.group.num_kills > 1
        return h.group.infos

    h.group.snapshots = lose
    assert h.run().state is State.FINISHED
    assert h.claims == [(1, None), (2, Origin(CheckpointId(11, 1), in_memory=True))]
    assert [v.data["sentence"].partition(".")[0] for v in h.said("verdict")][1:] == [
        "a node was lost before its ranks were started"
    ]


def test_what_a_walk_back_left_behind_does_not_count_as_durable():
    """Step 50 is durable and damaged; attempt 3 goes on from 40 to 45 in memory, and fails for good: 45 is rescued."""
    bad = {"step": 50, "attempt": 1, "reason": "digests"}

    def train(attempt):
        if attempt == 1:
            return [step(1, 50), snapshot(1, 50, True), step(1, 51), [exit_of(1, 1, None, 9)]]
        if attempt == 2:
            return [[error_of(2, 0, type="CheckpointUnusable", checkpoint=bad)]]
        return [step(attempt, 45), snapshot(attempt, 45, False), [error_of(attempt, 0, step=46)]]

    later = in_memory(45, 3)
    h = harness(train, selections=[FakeSelection(), stored(50), stored(40), later])
    h.run_until(State.RUNNING)
    h.outcomes = [durable(50)]
    for _ in range(1000):
        h.controller.step(h.clock.now)
        if h.group.persisted:
            break
    assert h.group.persisted == [CheckpointId(45, 3)]
    h.outcomes = [durable(45, 3)]
    assert h.run().state is State.FAILED
    assert "step 45, which was in memory, is durable now" in h.controller.why


def test_an_earlier_attempts_save_of_the_last_step_decides_nothing():
    def train(attempt):
        if attempt == 1:
            return [step(1, 2), snapshot(1, 2, True), [], [exit_of(1, 1, None, 9)]]
        return [step(2, 2), snapshot(2, 2, True), ended(2, "finished", 2)]

    h = harness(train, selections=[FakeSelection(), stored(1), in_memory(2, 2)])
    h.run_until(State.RUNNING)
    h.outcomes = [lost(2, 1)]
    h.run_until(State.RECOVERING)
    for _ in range(30):
        h.controller.step(h.clock.now)
    assert h.controller.state is State.RUNNING and h.group.persisted == [], "it waits for its own save"
    h.outcomes = [durable(2, 2)]
    assert h.run().state is State.FINISHED


def test_a_node_that_leaves_while_storage_is_down_costs_nothing_that_memory_holds():
    def train(attempt):
        if attempt == 1:
            return [step(1, 5), snapshot(1, 5, False)]
        return [step(2, 8), snapshot(2, 8, True), ended(2, "finished", 8)]

    h = harness(train, selections=[FakeSelection(), in_memory(6)])
    h.group.on_control["stop"] = [snapshot(1, 6, True), ended(1, "stopped", 6)]
    h.run_until(State.RUNNING)
    h.group.leaving = [Departure("id", "a", 25.0)]
    h.run_until(State.RESIZING)
    h.outcomes = [lost(6)]
    h.run_until(State.STARTING)
    assert [departure.name for departure in h.group.released] == ["a"]
    assert h.claims[-1] == (2, Origin(CheckpointId(6, 1), in_memory=True)) and h.said("verdict") == []
    h.run_until(State.RUNNING)
    h.outcomes = [durable(8, 2)]
    assert h.run().state is State.FINISHED


def test_a_driver_whose_run_another_one_owns_ends():
    """It could train on for days, and nothing of it would count."""
    h = harness(lambda a: [step(1, 10), snapshot(1, 10, True), *[step(1, n) for n in range(11, 400)]])
    h.run_until(State.RUNNING)
    h.outcomes = [Outcome(CheckpointId(10, 1), False, str(Superseded(1, 2)), is_superseded=True)]
    controller = h.run()
    assert (controller.state, controller.exit_code, controller.keep_snapshots) == (State.FAILED, 2, False)
    assert "attempt 2 was claimed meanwhile and owns the run: this driver ends" in controller.why
    assert h.group.persisted == []


def test_a_save_that_an_own_later_attempt_fenced_off_ends_nobody():
    def train(attempt):
        return [step(1, 11), [exit_of(1, 1, None, 9)]] if attempt == 1 else [step(2, 12), ended(2, "finished", 12)]

    h = harness(train, selections=[FakeSelection(), in_memory(9)])
    h.run_until(State.RECOVERING)
    h.outcomes = [Outcome(CheckpointId(10, 1), False, str(Superseded(1, 2)), is_superseded=True)]
    assert h.run().state is State.FINISHED


def test_nodes_that_are_lost_whenever_ranks_are_to_start_end_the_run():
    """An agent that cannot say what it holds is given up; another one in its place may fare no better."""
    h = harness(lambda a: [step(a, 1)])
    place = h.group.place

    def lose():
        h.group.is_whole = False
        return []

    def replaced(job, wait_s):
        placement = place(job, wait_s)
        if not h.group.is_whole and wait_s == 0.0:
            return Placement("a node is missing")
        h.group.is_whole = True
        return placement

    h.group.snapshots, h.group.place = lose, replaced
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.FAILED, 1)
    verdicts = h.said("verdict")
    assert len(verdicts) == h.config.max_failures + 1
    assert all("a node was lost before its ranks were started" in v.data["sentence"] for v in verdicts)
    assert h.claims == []


# -- a node that goes after the ranks are done -------------------------------------------------------------------------
def node_lost(node: str) -> Event:
    return event("node_lost", 0, -1, node=node, node_rank=1, message="the actor died", announced=False)


def on_two_nodes(attempt: int) -> list[Event]:
    return [event("phase", attempt, rank, 0, "init", node="ab"[rank]) for rank in (0, 1)]


def gone(how: str) -> list[Event]:
    return [event(how, 1, 0, 5, "end"), *[exit_of(1, rank, node="ab"[rank]) for rank in (0, 1)]]


def written(number: int, rank: int) -> Event:
    return event("written", 1, rank, number, "save")


@pytest.mark.parametrize("how", ["finished", "stopped"])
def test_a_part_of_the_last_state_that_went_with_its_node_is_saved_again_at_once(how):
    """The snapshots lie in its host's memory, or at its buddy: another attempt starts from them and saves."""

    def train(attempt):
        if attempt == 1:
            return [
                on_two_nodes(1),
                step(1, 5),
                snapshot(1, 5, True),
                gone(how),
                [written(5, 0), node_lost("b")],
            ]
        return [snapshot(2, 5, True), ended(2, "finished", 5)]

    h = harness(train, selections=[FakeSelection(), in_memory(5)])
    started = h.clock.now
    until_waiting(h)
    assert h.claims[-1] == (2, Origin(CheckpointId(5, 1), in_memory=True)) and h.clock.now - started < 30
    h.outcomes = [durable(5, 2)]
    assert h.run().state is State.FINISHED


def test_a_node_that_goes_when_its_part_is_written_costs_nothing():
    last = [[written(5, 0), written(5, 1), node_lost("b")]]
    h = harness(lambda a: [on_two_nodes(1), step(1, 5), snapshot(1, 5, True), gone("finished"), *last])
    until_waiting(h)
    assert h.controller.state is State.RUNNING
    h.outcomes = [durable(5)]
    assert h.run().state is State.FINISHED and len(h.claims) == 1


def test_what_a_missing_node_may_complete_is_kept_for_whoever_resumes():
    script = [on_two_nodes(1), step(1, 5), snapshot(1, 5, False), [node_lost("b")]]
    h = harness(lambda a: script, config=ClusterConfig(max_failures=0))
    h.run_until("RUNNING")
    h.group.is_whole, h.group.infos = False, [held(5, 0)]
    h.selections = [stored(3)]
    controller = h.run()
    assert controller.state is State.FAILED and controller.keep_snapshots
    assert "keeps a part of a newer step: resume while they do" in controller.why


def test_nothing_is_kept_of_what_is_durable_already():
    script = [on_two_nodes(1), step(1, 5), snapshot(1, 5, False), [node_lost("b")]]
    h = harness(lambda a: script, config=ClusterConfig(max_failures=0))
    h.run_until("RUNNING")
    h.group.is_whole, h.group.infos = False, [held(5, 0)]
    h.selections = [stored(5)]
    assert h.run().state is State.FAILED and not h.controller.keep_snapshots


def test_a_step_that_storage_has_is_not_rescued_again():
    """By a driver that has not seen it become durable: the resumed run's newest snapshot is of the very step that was saved."""
    h = harness(failing, config=ClusterConfig(max_failures=0))
    h.run_until("RECOVERING")
    h.selections = [in_memory(12), stored(12)]
    assert h.run().state is State.FAILED
    assert h.group.persisted == [] and not h.controller.keep_snapshots


def held(number: int, rank: int) -> SnapshotInfo:
    meta = SnapshotMeta(step=number, attempt=1, silo="main", rank=rank, world_size=2, token="t")
    return SnapshotInfo(0, "x", meta, None)


@pytest.mark.parametrize("how", ["finished", "stopped"])
def test_a_rank_that_does_not_exit_leaves_the_last_save_its_time(how):
    """It is given up; the save that is on its way is not."""
    h = harness(lambda a: [step(1, 5), snapshot(1, 5, True), [event(how, 1, 0, 5, "end"), exit_of(1, 0)]])
    for _ in range(200):
        h.controller.step(h.clock.now)
    assert "did not exit" in h.said("incident")[0].data["message"] and len(h.said("incident")) == 1
    assert not h.controller.state.is_final and h.controller.keep_snapshots
    h.outcomes = [durable(5)]
    assert h.run().state is (State.FINISHED if how == "finished" else State.STOPPED)
    assert h.controller.exit_code == 0 and not h.controller.keep_snapshots


# -- snapshots that cannot be reached, nodes that cannot be replaced -----------------------------------------------------
def test_snapshots_that_could_not_be_read_once_are_tried_again_and_twice_are_not():
    away = {"step": 11, "attempt": 1}

    def train(attempt):
        if attempt == 1:
            return [step(1, 11), [exit_of(1, 1, None, 9)]]
        if attempt < 4:
            error = error_of(attempt, 0, 11, type="SnapshotUnreachable", message="timed out", unreachable=away)
            return [[error]]
        return [step(4, 12), ended(4, "finished", 12)]

    h = harness(train, selections=[FakeSelection(), in_memory(11), in_memory(11), stored(10)])
    assert h.run().state is State.FINISHED
    assert h.excluded[2] == frozenset()
    assert h.excluded[-1] == {Origin(CheckpointId(11, 1), in_memory=True)}


def test_what_memory_holds_is_rescued_when_no_node_takes_the_place_of_a_lost_one():
    h = harness(
        lambda a: [step(1, 12), snapshot(1, 12, False), [node_lost("b")]], config=ClusterConfig(placement_timeout_s=5)
    )
    h.run_until("RUNNING")
    h.group.placements, h.selections = [Placement("asked for 2 nodes; 1 found")], [in_memory(12)]
    until_waiting(h)
    assert h.group.persisted == [CheckpointId(12, 1)]
    h.outcomes = [durable(12)]
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.FAILED, 3)
    assert (
        "asked for 2 nodes; 1 found" in controller.why
        and "step 12, which was in memory, is durable now" in controller.why
    )
