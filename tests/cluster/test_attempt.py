"""A straggler is one incident with its rank, node and how much slower it is, and one more when it is over."""

from __future__ import annotations

from tests.cluster.fakes import ended, event, exit_of, harness
from zerofleet.cluster.attempt import Attempt, Stage
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.hooks import Origin
from zerofleet.cluster.policy.stragglers import WINDOW_STEPS, WINDOWS
from zerofleet.trainer.run_folder import CheckpointId

NUM_RANKS = 4
LONG = WINDOW_STEPS * WINDOWS


def steps(first: int, last: int, slow_rank: int | None = None):
    """Each step's events, as ranks tell them: rank 0's own seconds are in its `step` event, one step later."""
    for number in range(first, last + 1):
        own = [0.3 if rank == slow_rank else 0.2 for rank in range(NUM_RANKS)]
        signs = [event("phase", 1, rank, number, own_s=own[rank]) for rank in range(1, NUM_RANKS)]
        yield [*signs, event("step", 1, 0, number - 1, loss=1.0, own_s=own[0])]


def incidents(train) -> list[dict]:
    begins = [event("phase", 1, rank, 0, "init", node=f"node-{rank // 2}") for rank in range(NUM_RANKS)]
    h = harness(lambda a: [begins, *train, ended(a, "finished", 999, NUM_RANKS)], world_size=NUM_RANKS)
    assert h.run().state == "FINISHED"
    return [e.data for e in h.said("incident")]


def test_a_straggler_is_told_once_with_rank_node_and_by_how_much():
    (told,) = incidents(steps(1, 3 * LONG, slow_rank=2))
    assert (told["class"], told["rank"], told["node"], told["own_s"]) == ("straggler", 2, "node-1", 0.3)
    assert told["message"] == (
        "rank 2 on node node-1 is a straggler: 0.3 s of its own work per step, 1.50 x the ranks' median of 0.2 s, over 48 steps; "
        "all others wait for it"
    )


def test_a_rank_that_waits_for_its_data_is_one_too():
    late = [
        [event("phase", 1, rank, number, own_s=0.2, data_s=0.1 if rank == 2 else 0.0) for rank in range(1, NUM_RANKS)]
        + [event("step", 1, 0, number - 1, loss=1.0, own_s=0.2, data_s=0.0)]
        for number in range(1, 3 * LONG + 1)
    ]
    assert [told["rank"] for told in incidents(late)] == [2]


def test_rank_0_can_be_one_too():
    assert [told["rank"] for told in incidents(steps(1, LONG + 1, slow_rank=0))] == [0]


def test_its_end_is_told_once():
    told = incidents([*steps(1, LONG, slow_rank=3), *steps(LONG + 1, 4 * LONG)])
    assert [found["message"].partition(":")[0] for found in told] == [
        "rank 3 on node node-1 is a straggler",
        "rank 3 on node node-1 is no straggler any more",
    ]
    assert [found["is_over"] for found in told] == [False, True]


def test_ranks_that_are_alike_are_not_told():
    assert incidents(steps(1, 3 * LONG)) == []


def test_ranks_that_all_end_with_an_exit_code_are_not_said_to_have_ended_well():
    exits = [exit_of(1, rank, 3) for rank in range(2)]
    h = harness(lambda a: [[event("phase", 1, 0, 1)], exits], config=ClusterConfig(max_failures=0))
    h.run()
    assert "rank 0 on node a, in phase step after step 1, ended with exit code 3 and said nothing" in h.controller.why


def test_a_rank_that_starts_from_a_later_step_is_where_it_says():
    attempt = Attempt(2, Stage.TRAIN, Origin(CheckpointId(7, 1), in_memory=True), 1, 0.0)
    for phase in ("init", "build", "load"):
        attempt.hear(event("phase", 2, 0, 0, phase), 1.0)
        assert f"1 in phase {phase}" in attempt.where_ranks_are()
        assert attempt._ranks[0].place.step == 7
    attempt.hear(event("phase", 2, 0, 8, "step"), 2.0)
    assert "1 in phase step" in attempt.where_ranks_are() and attempt._ranks[0].place.step == 8
