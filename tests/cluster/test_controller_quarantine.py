"""Bad steps through the controller: replay, then quarantine, carried on by every later attempt."""

from __future__ import annotations

from tests.cluster.fakes import FakeSelection, ended, error_of, exit_of, harness, step
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.group import Placement
from zerofleet.cluster.state import State
from zerofleet.trainer.run_folder import CheckpointId

FIVE = FakeSelection(CheckpointId(5, 1), found=1)


def nan(attempt, start=40):
    bad = {"step": 6, "ranges": [[start, start + 8]], "loss": None}
    message = f"step 6 was not applied: its gradient norm is nan (positions {start} to {start + 7})"
    return [step(attempt, 5), [error_of(attempt, 1, 5, type="NonFiniteStep", message=message, bad_step=bad)]]


def test_a_second_time_leaves_the_samples_out_and_says_which_and_why():
    h = harness(lambda a: nan(a) if a < 3 else [step(a, 6), ended(a, "finished", 6)], selections=[FIVE])
    assert h.run().state is State.FINISHED
    assert h.quarantines == [[], [], [[40, 48]]]
    first, second = h.said("verdict")
    assert (first.data["action"], second.data["action"]) == ("retry", "quarantine")
    assert second.data["class"] == "data" and second.data["rank"] == 1
    assert ". Going on: step 6 gave a non-finite gradient twice" in second.data["sentence"]
    assert "gradient norm is nan" in second.data["sentence"] and "positions 40 to 47" in second.data["sentence"]
    (incident,) = h.said("incident")
    assert incident.data["quarantine"] == ((40, 48),) and "positions 40 to 47" in incident.data["message"]


def test_later_failures_and_a_node_that_must_be_replaced_keep_the_quarantine():
    def train(attempt):
        if attempt == 3:
            return [step(3, 9), [exit_of(3, 0, None, 9)]]
        return nan(attempt) if attempt < 3 else [ended(attempt, "finished", 9)]

    h = harness(train, selections=[FIVE])
    h.group.placements = [Placement(), Placement(), Placement("1 node"), Placement()]
    assert h.run().state is State.FINISHED
    assert h.quarantines == [[], [], [[40, 48]], [[40, 48]]]


def test_more_than_may_be_left_out_stops_with_the_remedy():
    starts = {1: 40, 2: 40, 3: 48, 4: 48}
    h = harness(lambda a: nan(a, starts[a]), selections=[FIVE], config=ClusterConfig(max_quarantined_steps=1))
    assert (h.run().state, h.controller.exit_code) == (State.FAILED, 1)
    assert h.quarantines == [[], [], [[40, 48]], [[40, 48]]]
    assert "cluster.max_quarantined_steps=1" in h.controller.why


def test_what_the_run_left_out_before_counts():
    h = harness(nan, selections=[FIVE], config=ClusterConfig(max_quarantined_steps=1), quarantined=((8, 16),))
    assert h.run().state is State.FAILED
    assert "the samples of 1 steps are left out already" in h.controller.why
