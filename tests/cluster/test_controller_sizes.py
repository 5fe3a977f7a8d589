"""Fewer nodes, and more again: the controller with a run of one to three nodes, two ranks each."""

from __future__ import annotations

from dataclasses import replace

from tests.cluster.fakes import FakeSelection, checkpoint, ended, event, exit_of, harness, step
from zerofleet.cluster.commits import Outcome
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.group import Departure, Placement
from zerofleet.cluster.policy.sizing import Sizes
from zerofleet.cluster.state import State
from zerofleet.trainer.run_folder import CheckpointId

SIZES = Sizes(1, 3, 2, 32, 1, grace_s=30.0, placement_timeout_s=120.0)
CONFIG = ClusterConfig(nodes=3, min_nodes=1)


def lost_node(attempt: int) -> list:
    data = {"node": "c", "node_rank": 2, "message": "its host does not answer"}
    return [event("node_lost", attempt, -1, 5, **data), exit_of(attempt, 0, None, 9, killed=True)]


def fleet(train, sizes: Sizes = SIZES):
    h = harness(train, sizes=sizes, config=CONFIG)
    h.group.num_nodes = 3
    return h


def after_a_loss(world: int):
    """The ranks of a run that loses a node after two steps, and then goes on with so many ranks."""

    def script(attempt):
        if attempt == 1:
            return [step(1, number, 6) for number in (1, 2)] + [lost_node(1)]
        return [step(attempt, 3, world), ended(attempt, "finished", 3, world)]

    return script


def test_a_lost_node_is_waited_for_and_then_done_without():
    h = fleet(after_a_loss(4))
    h.group.placements = [Placement(), *[Placement("one node is missing", num_ready=2)] * 100]
    h.run_until("RECOVERING")
    lost_at = h.clock.now
    for _ in range(1000):
        if len(h.claims) == 2:
            break
        h.controller.step(h.clock.now)
        if h.group.num_nodes == 2:
            h.group.placements = [Placement()]
    assert h.world_sizes == [6, 4]
    assert 30 <= h.clock.now - lost_at < 33, "cluster.replace_timeout_s, and what two looks take"
    told = [e.data["message"] for e in h.said("info")]
    assert any("going on with them" in message and "(3 -> 2 nodes)" in message for message in told), told
    assert h.run().state is State.FINISHED


def test_a_node_that_is_to_be_taken_away_is_left_behind_saved_and_no_step_is_lost():
    """Its notice is no failure, and costs neither a step nor one of `cluster.max_failures`."""

    def script(attempt):
        return [step(1, 1, 6), step(1, 2, 6)] if attempt == 1 else [step(2, 4, 6), ended(2, "finished", 4, 6)]

    h = fleet(script)
    h.selections = [FakeSelection(), FakeSelection(CheckpointId(3, 1), found=1)]
    h.group.on_control["stop"] = [[checkpoint(1, 3)], ended(1, "stopped", 3, 6)]
    h.run_until("RUNNING")
    h.group.leaving = [Departure("id-c", "c", 25.0)]
    h.run_until("RESIZING")
    assert h.group.controls == ["stop"] and h.group.released == []
    assert h.run().state is State.FINISHED
    assert [departure.name for departure in h.group.released] == ["c"]
    assert h.world_sizes == [6, 6] and h.claims[1][1].checkpoint == CheckpointId(3, 1)
    whys = [e.data["why"] for e in h.said("state")]
    assert "node c (in 25 s) will be taken away: the ranks save at the end of their step" in whys
    assert h.said("verdict") == []


def test_a_node_that_goes_before_its_notice_is_over_is_a_lost_node():
    h = fleet(after_a_loss(6))
    h.run_until("RUNNING")
    h.group.on_control["stop"] = [lost_node(1)]
    h.group.leaving = [Departure("id-c", "c", float("inf"))]
    assert h.run().state is State.FINISHED
    assert [e.data["class"] for e in h.said("verdict")] == ["node"] and h.group.released == []


def test_a_replacement_within_the_grace_keeps_the_size():
    h = fleet(after_a_loss(6))
    h.group.placements = [Placement(), *[Placement("one node is missing", num_ready=2)] * 8, Placement()]
    assert h.run().state is State.FINISHED
    assert h.world_sizes == [6, 6]


def test_with_too_few_nodes_it_waits_as_long_as_a_placement_may_take_and_says_what_is_missing():
    h = fleet(after_a_loss(4), Sizes(2, 3, 2, 32, 1, grace_s=30.0, placement_timeout_s=120.0))
    h.group.placements = [Placement(), Placement("two nodes are missing", num_ready=1)]
    lost_at = h.clock.now
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.FAILED, 3)
    assert "two nodes are missing" in controller.why
    assert h.clock.now - lost_at > 120


def steps_forever(attempt):
    world = {1: 2, 2: 6}[attempt]
    if attempt == 2:
        return [step(2, 101, 6), ended(2, "finished", 101, 6)]
    return [step(attempt, number, world) for number in range(1, 3)]


def grown(h) -> None:
    """A node is there for longer than it has to be, while the run steps; then a step becomes durable."""
    for number in range(3, 63):
        h.clock.now += 10
        h.group._batches = [[replace(said, duration_s=10.0) for said in step(1, number)]]
        h.controller.step(h.clock.now)
    h.outcomes.append(Outcome(CheckpointId(62, 1), True, num_bytes=1, seconds=1.0))


def one_of_three():
    h = harness(steps_forever, sizes=Sizes(1, 3, 2, 32, 1, 30.0, 120.0), config=CONFIG)
    h.group.on_control = {
        "stop": [[event("snapshot", 1, 0, 63, durable=True)], [checkpoint(1, 63)], ended(1, "stopped", 63)]
    }
    h.run_until("RUNNING")
    h.group._batches = []
    return h


def test_it_grows_when_nodes_are_back_and_a_step_has_become_durable():
    h = one_of_three()
    h.group.names = ["a", "b", "c"]
    grown(h)
    h.run_until("RESIZING")
    assert h.group.controls == ["stop"]
    assert h.run().state is State.FINISHED
    assert h.world_sizes == [2, 6], "all positions are dealt to six ranks from here on"
    assert [s for s in h.states() if s in ("RESIZING", "PLACING")] == ["PLACING", "RESIZING", "PLACING"]


def test_it_waits_for_the_agent_that_it_grows_by():
    """Else it would go on as it was, and be stopped again to grow at every commit. An agent takes seconds to come up."""
    h = one_of_three()
    h.group.names = ["a", "b", "c"]
    grown(h)
    h.run_until("RESIZING")
    h.group.placements = [*[Placement("2 node agent(s) have not come up", num_ready=1)] * 8, Placement()]
    assert h.run().state is State.FINISHED
    assert h.world_sizes == [2, 6]


def test_without_new_nodes_it_stays_as_it_is():
    h = one_of_three()
    grown(h)
    for _ in range(20):
        h.controller.step(h.clock.now)
    assert h.controller.state is State.RUNNING and h.group.controls == []


def test_a_stop_while_it_grows_stops_it():
    h = one_of_three()
    h.group.names, h.group.on_control = ["a", "b", "c"], {}
    grown(h)
    h.run_until("RESIZING")
    h.requests.append("stop")
    h.group._batches = [[event("snapshot", 1, 0, 63, durable=True)], [checkpoint(1, 63)], ended(1, "stopped", 63)]
    assert h.run().state is State.STOPPED
    assert h.world_sizes == [2]


def test_a_rank_that_dies_while_it_grows_is_recovered():
    h = one_of_three()
    h.group.names, h.group.on_control = ["a", "b", "c"], {}
    grown(h)
    h.run_until("RESIZING")
    h.group._batches = [[exit_of(1, 1, None, 9)]]
    h.run_until("RECOVERING")
