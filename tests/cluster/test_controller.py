"""The state machine, driven one step at a time against fake ranks and a fake clock."""

from __future__ import annotations

import itertools

import pytest

from tests.cluster.fakes import (
    FakeSelection,
    checkpoint,
    ended,
    error_of,
    event,
    exit_of,
    harness,
    step,
)
from zerofleet.cluster.attempt import Stage
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.group import Placement
from zerofleet.cluster.hooks import Origin
from zerofleet.cluster.preflight import NodeFinding
from zerofleet.cluster.stacks import RankStack
from zerofleet.cluster.state import State
from zerofleet.trainer.errors import DataError, UserError
from zerofleet.trainer.run_folder import CheckpointId

TEN = FakeSelection(CheckpointId(10, 1), found=1)


def finishing(attempt):
    return [step(attempt, 1), step(attempt, 2), ended(attempt, "finished", 2)]


def test_the_whole_way():
    h = harness(finishing, stages=(Stage.CHECK, Stage.TRAIN, Stage.EXPORT))
    controller = h.run()
    assert controller.state is State.FINISHED
    assert controller.exit_code == 0
    assert h.states() == ["PREPARING", "PLACING", "STARTING", "STARTING", "RUNNING", "RUNNING", "FINISHED"]
    assert h.group.started == [("check", 1, 2), ("rank", 1, 2), ("export", 1, 1)]
    assert h.claims == [(1, None)], "only training is an attempt"
    assert controller.why == "all 2 steps are done"


def test_every_transition_says_why_and_carries_the_state_before():
    h = harness(finishing)
    h.run()
    told = [(e.data["from"], e.data["to"]) for e in h.said("state")]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(told))
    assert all(e.data["why"] for e in h.said("state"))


def test_attempts_go_on_counting_from_the_claimed_ones():
    h = harness(finishing, last_attempt=4, selections=[TEN])
    h.run()
    assert h.claims == [(5, Origin(CheckpointId(10, 1)))]


def test_a_finished_run_that_is_resumed_has_no_step_to_do():
    h = harness(lambda a: [ended(a, "finished", 10)], selections=[TEN])
    assert h.run().state is State.FINISHED
    assert "RUNNING" not in h.states()


def test_a_killed_rank_restarts_from_the_newest_checkpoint():
    def train(attempt):
        if attempt == 1:
            return [step(1, 11), [checkpoint(1, 11)], step(1, 12), [exit_of(1, 1, None, 9)]]
        return [step(2, 12), ended(2, "finished", 12)]

    h = harness(train, selections=[FakeSelection(), FakeSelection(CheckpointId(11, 1), found=1)])
    h.group.on_kill = [exit_of(1, 0, None, 9, killed=True)]
    assert h.run().state is State.FINISHED
    assert h.claims == [(1, None), (2, Origin(CheckpointId(11, 1)))]
    assert h.states()[-4:] == ["RECOVERING", "STARTING", "RUNNING", "FINISHED"]
    (verdict,) = h.said("verdict")
    assert verdict.data["class"] == "node"
    assert verdict.data["action"] == "retry"
    assert verdict.data["rank"] == 1
    assert "rank 1 on node a, in phase step after step 12, was killed (SIGKILL)" in verdict.data["sentence"]


def test_the_same_traceback_twice_without_progress_stops():
    h = harness(lambda a: [step(a, 1), [error_of(a, 0, 1), exit_of(a, 0, 1)]])
    controller = h.run()
    assert controller.state is State.FAILED
    assert controller.exit_code == 1
    assert len(h.claims) == 2
    assert "same traceback" in controller.why


def test_another_traceback_each_time_stops_at_max_failures():
    h = harness(lambda a: [step(a, 1), [error_of(a, 0, 1, frames=[f"f:{a} g"])]], config=ClusterConfig(max_failures=2))
    assert h.run().state is State.FAILED
    assert len(h.claims) == 3
    assert "cluster.max_failures=2" in h.controller.why


def test_progress_renews_the_failure_budget():
    def train(attempt):
        if attempt == 8:
            return [ended(8, "finished", 8)]
        return [step(attempt, attempt), [exit_of(attempt, 0, None, 9)]]

    h = harness(train, config=ClusterConfig(max_failures=1))
    assert h.run().state is State.FINISHED
    assert len(h.claims) == 8


def test_a_user_error_stops_at_once_with_exit_code_2():
    h = harness(lambda a: [[error_of(a, 0, type="DataError", message="the corpus is empty", user=True)]])
    controller = h.run()
    assert (controller.state, controller.exit_code, len(h.claims)) == (State.FAILED, 2, 1)
    assert controller.why == "the corpus is empty"


def test_a_model_that_does_not_take_the_data_claims_no_attempt():
    h = harness(finishing, stages=(Stage.CHECK, Stage.TRAIN))
    h.group.check = lambda a: [[error_of(a, 0, type="UserError", message="vocabulary too small", user=True)]]
    assert h.run().exit_code == 2
    assert h.claims == []


def test_a_failed_export_is_tried_once_more_and_costs_no_training():
    h = harness(finishing, stages=(Stage.TRAIN, Stage.EXPORT))
    h.group.export = lambda a: [[error_of(a, 0, type="StorageError", message="full"), exit_of(a, 0, 1)]]
    controller = h.run()
    assert controller.state is State.FAILED
    assert [name for name, _, _ in h.group.started] == ["rank", "export", "export"]
    assert "full" in controller.why


def test_an_unusable_checkpoint_is_left_out_and_not_charged():
    bad = {"step": 10, "attempt": 1, "reason": "hash"}

    def train(attempt):
        if attempt < 6:
            return [[error_of(attempt, 0, type="CheckpointUnusable", checkpoint=bad | {"attempt": attempt})]]
        return [ended(attempt, "finished", 10)]

    h = harness(train, selections=[TEN], config=ClusterConfig(max_failures=0))
    assert h.run().state is State.FINISHED
    assert h.excluded[-1] == {Origin(CheckpointId(10, attempt)) for attempt in range(1, 6)}


def test_skipped_checkpoints_are_told_once_with_the_reason():
    skipped = ((CheckpointId(20, 1), "its manifest is cut short"),)
    h = harness(
        lambda a: [step(a, 11), [exit_of(a, 0, None, 9)]] if a == 1 else [ended(a, "finished", 12)],
        selections=[FakeSelection(CheckpointId(10, 1), skipped, 2)],
    )
    h.run()
    (incident,) = h.said("incident")
    assert "step 20 (attempt 1) was skipped: its manifest is cut short" in incident.data["message"]


def test_never_from_scratch_when_there_are_only_bad_checkpoints():
    h = harness(finishing, selections=[FakeSelection(None, ((CheckpointId(10, 1), "flipped byte"),), 1)])
    controller = h.run()
    assert (controller.state, controller.exit_code, h.claims) == (State.FAILED, 1, [])
    assert "flipped byte" in controller.why
    assert "run.name" in controller.why


def test_another_driver_that_claimed_the_attempt_owns_the_run():
    h = harness(finishing, claim_error=UserError("attempt 1 was claimed by another driver"))
    assert (h.run().state, h.controller.exit_code) == (State.FAILED, 2)
    assert h.group.started == []


def test_data_that_cannot_be_prepared():
    h = harness(finishing, prepare_error=DataError("no file matches"))
    assert (h.run().state, h.controller.exit_code) == (State.FAILED, 2)
    assert h.said("error")[0].data == {
        "type": "UserError",
        "message": "no file matches",
        "traceback": "",
        "user": True,
    }


def test_a_placement_timeout_says_what_is_missing():
    h = harness(finishing, config=ClusterConfig(placement_timeout_s=30))
    h.group.placements = [Placement("asked for 2 nodes; 1 found")]
    started = h.clock.now
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.FAILED, 3)
    assert 30 < h.clock.now - started < 32
    assert "placement_timeout_s=30" in controller.why
    assert "asked for 2 nodes; 1 found" in controller.why


def test_pre_flight_names_the_bad_node_and_keeps_warnings():
    h = harness(finishing)
    findings = (NodeFinding("warning", "a", "little disk"), NodeFinding("error", "b", "no GPU is visible"))
    h.group.placements = [Placement(findings=findings)]
    assert h.run().state is State.FAILED
    assert "node b: no GPU" in h.controller.why
    assert [e.data["message"] for e in h.said("incident")] == ["node a: little disk", "node b: no GPU is visible"]


def test_an_unfit_node_is_left_out_where_another_can_take_its_place():
    h = harness(finishing)
    h.group.placements = [Placement(findings=(NodeFinding("error", "b", "no GPU is visible"),)), Placement()]
    h.group.replaceable = ["b"]
    assert h.run().state is State.FINISHED
    assert h.group.left_out == ["b"]
    assert "the run goes on without node b" in h.said("info")[0].data["message"]


def test_a_node_that_is_proved_to_compute_wrongly_is_left_out():
    def train(attempt):
        if attempt == 1:
            begin = [event("phase", 1, rank, 0, "init", node="ab"[rank]) for rank in (0, 1)]
            return [begin, step(1, 5), [error_of(1, 0, 5, type="ReplicaDivergence", message="rank 1", suspects=[1])]]
        return [step(2, 6), ended(2, "finished", 6)]

    h = harness(train)
    h.group.replaceable = ["a", "b"]
    assert h.run().state is State.FINISHED
    assert h.group.left_out == ["b"]


def test_a_start_that_takes_too_long():
    h = harness(
        lambda a: [[event("phase", a, 0, 0, "build"), event("phase", a, 1, 0, "init")]],
        config=ClusterConfig(start_timeout_s=20, max_failures=0),
    )
    controller = h.run()
    assert controller.state is State.FAILED
    assert "cluster.start_timeout_s=20" in controller.why
    assert "rank 1 in init" in controller.why or "rank 0 in build" in controller.why


def test_silence_is_a_hang_and_the_frozen_rank_is_named():
    def train(attempt):
        return [step(1, 5)] if attempt == 1 else [ended(2, "finished", 6)]

    h = harness(train, config=ClusterConfig(stall_timeout_s=7))
    h.group.on_kill = [
        exit_of(1, 0, None, 9, killed=True, state_before="S"),
        exit_of(1, 1, None, 9, killed=True, state_before="T"),
    ]
    started = h.clock.now
    assert h.run().state is State.FINISHED
    assert 7 < h.clock.now - started < 10
    (verdict,) = h.said("verdict")
    assert (verdict.data["class"], verdict.data["rank"]) == ("hang", 1)
    assert "stopped by a signal; 2 ranks are silent" in verdict.data["sentence"]


def test_a_rank_that_freezes_while_it_starts_is_noticed_long_before_the_start_is_too_late():
    def train(attempt):
        building = [event("phase", 1, rank, 0, "build") for rank in (0, 1)]
        return [building] if attempt == 1 else [ended(2, "finished", 6)]

    h = harness(train, config=ClusterConfig(stall_timeout_s=7, start_timeout_s=600))
    h.group.on_kill = [exit_of(1, 1, None, 9, killed=True, state_before="T")]
    started = h.clock.now
    assert h.run().state is State.FINISHED
    assert 7 < h.clock.now - started < 10
    (verdict,) = h.said("verdict")
    assert (verdict.data["class"], verdict.data["rank"]) == ("hang", 1)


def test_a_broken_connection_waits_for_its_cause():
    def train(attempt):
        if attempt == 2:
            return [ended(2, "finished", 6)]
        echo = error_of(1, 0, 5, type="RuntimeError", message="Connection closed by peer")
        return [step(1, 5), [echo], [exit_of(1, 1, None, 11)]]

    h = harness(train)
    h.run()
    (verdict,) = h.said("verdict")
    assert verdict.data["rank"] == 1
    assert "SIGSEGV" in verdict.data["sentence"]


def test_a_broken_connection_alone_is_judged_after_a_second():
    h = harness(
        lambda a: [step(a, 5), [error_of(a, 0, 5, type="RuntimeError", message="Connection reset by peer")]],
        config=ClusterConfig(max_failures=0),
    )
    h.run()
    assert h.said("verdict")[0].data["class"] == "network"


def test_a_lost_node_is_replaced():
    def train(attempt):
        lost = event("node_lost", 0, -1, node="b", node_rank=1, message="died")
        return [step(1, 5), [lost]] if attempt == 1 else [ended(2, "finished", 6)]

    h = harness(train)
    h.group.placements = [Placement(), Placement("1 node"), Placement("1 node"), Placement()]
    assert h.run().state is State.FINISHED
    assert h.states()[3:7] == ["RUNNING", "RECOVERING", "PLACING", "STARTING"]
    assert h.said("verdict")[0].data["node"] == "b"


def test_a_stop_drains_to_a_durable_checkpoint():
    h = harness(lambda a: [step(a, 5)])
    h.run_until("RUNNING")
    h.group.on_control["stop"] = [[checkpoint(1, 6)], ended(1, "stopped", 6)]
    h.requests = ["stop"]
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.STOPPED, 0)
    assert h.group.controls == ["stop"]
    assert "step 6" in controller.why


def test_a_run_that_has_had_its_hours_saves_and_stops_for_that_reason():
    h = harness(lambda a: [step(a, 5)])
    h.run_until("RUNNING")
    h.group.on_control["stop"] = [[checkpoint(1, 6)], ended(1, "stopped", 6)]
    h.controller.limit("the run has had 2 h")
    h.requests = ["stop"]
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.STOPPED, 3)
    assert "step 6 is durable" in controller.why and "has had 2 h" in controller.why
    (verdict,) = h.said("verdict")
    assert (verdict.data["class"], verdict.data["action"]) == ("time limit", "stop")


def test_what_the_ranks_are_doing_is_told_on_request_and_the_run_goes_on():
    h = harness(lambda a: [step(a, 5)])
    h.run_until("RUNNING")
    h.group.on_stacks = {0: RankStack("R", "in forward", False), 1: RankStack("S", "in all_gather", True)}
    h.requests = ["stacks"]
    h.controller.step(h.clock.now)
    assert [event.data["ranks"] for event in h.said("stacks")] == [{"0": "R in forward", "1": "S in all_gather"}]
    assert h.states()[-1] == "RUNNING" and h.group.controls == []


def test_a_stop_at_the_last_step_finishes():
    h = harness(lambda a: [step(a, 5)], stages=(Stage.TRAIN, Stage.EXPORT))
    h.run_until("RUNNING")
    h.group.on_control["stop"] = [ended(1, "finished", 6)]
    h.requests = ["stop"]
    assert h.run().state is State.FINISHED
    assert h.group.started[-1][0] == "export"


def test_a_stop_whose_notice_is_over_says_so():
    h = harness(lambda a: [step(a, 5), [checkpoint(a, 5)]], config=ClusterConfig(stop_timeout_s=9))
    h.run_until("RUNNING")
    h.requests = ["stop"]
    started = h.clock.now
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.STOPPED, 3)
    assert 9 < h.clock.now - started < 11
    assert "stop_timeout_s=9" in controller.why
    assert "step 5" in controller.why
    assert h.group.num_kills


def test_a_rank_that_dies_while_draining():
    h = harness(lambda a: [step(a, 5)])
    h.run_until("RUNNING")
    h.group.on_control["stop"] = [[exit_of(1, 1, None, 9)]]
    h.requests = ["stop"]
    controller = h.run()
    assert (controller.state, controller.exit_code) == (State.STOPPED, 1)
    assert "rank 1" in controller.why


@pytest.mark.parametrize("state", ["PENDING", "PREPARING", "PLACING", "RECOVERING"])
def test_a_stop_with_nothing_to_save(state):
    h = harness(lambda a: [step(a, 5), [exit_of(a, 0, None, 9)]])
    h.run_until(state)
    h.requests = ["stop"]
    assert (h.run().state, h.group.controls) == (State.STOPPED, [])


def test_a_second_stop_ends_at_once():
    h = harness(lambda a: [step(a, 5)])
    h.run_until("RUNNING")
    h.requests = ["stop", "end"]
    started = h.clock.now
    assert h.run().state is State.STOPPED
    assert h.clock.now == started
    assert h.group.num_kills == 1


def test_save_reaches_rank_zero_while_training_only():
    h = harness(lambda a: [step(a, 5)])
    h.requests = ["save"]
    h.run_until("RUNNING")
    assert h.group.controls == []
    h.requests = ["save"]
    h.controller.step(h.clock.now)
    assert h.group.controls == ["save"]


def test_ranks_that_do_not_exit_after_finishing_are_ended():
    h = harness(
        lambda a: [step(a, 5), [event("finished", a, 0, 5, "end"), exit_of(a, 0)]],
        config=ClusterConfig(stall_timeout_s=5),
    )
    assert h.run().state is State.FINISHED
    assert h.said("verdict") == []
    assert "did not exit" in h.said("incident")[0].data["message"]


def test_a_crash_after_the_last_step_is_durable_loses_nothing():
    h = harness(lambda a: [step(a, 5), [event("finished", a, 0, 5, "end"), exit_of(a, 0, None, 11), exit_of(a, 1)]])
    assert h.run().state is State.FINISHED


def test_ranks_that_end_without_a_word_have_failed():
    h = harness(lambda a: [step(a, 5), [exit_of(a, 0), exit_of(a, 1)]], config=ClusterConfig(max_failures=0))
    assert h.run().state is State.FAILED
    assert "without finishing or stopping" in h.controller.why


def test_news_of_an_older_attempt_do_not_count():
    def train(attempt):
        if attempt == 1:
            return [step(1, 5), [exit_of(1, 0, None, 9)]]
        return [step(2, 6), [exit_of(1, 1, None, 9)], ended(2, "finished", 7)]

    h = harness(train)
    assert h.run().state is State.FINISHED
    assert len(h.claims) == 2


def test_a_heartbeat_every_ten_seconds():
    h = harness(lambda a: [step(a, 5)], config=ClusterConfig(stall_timeout_s=95, max_failures=0))
    h.run()
    assert 9 <= len(h.said("heartbeat")) <= 11
