"""From evidence to a class and a sentence."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.cluster.fakes import error_of, event, exit_of
from zerofleet.cluster.attempt import Attempt, Stage
from zerofleet.cluster.policy.heartbeat import Limits
from zerofleet.cluster.stacks import RankStack
from zerofleet.cluster.verdict import BadStep, Evidence, Place, is_failure, judge
from zerofleet.trainer.events import Event

PLACES = {rank: Place("abcd"[rank], "step", 12) for rank in range(4)}


def verdict(*events, **fields):
    return judge(Evidence(tuple(events), places=PLACES, **fields))


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("ValueError", "no", "user bug"),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", "device OOM"),
        ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory", "host OOM"),
        ("MemoryError", "", "host OOM"),
        ("OSError", "[Errno 28] No space left on device", "storage"),
        ("StorageError", "the disk is full", "storage"),
        ("DataError", "empty", "data"),
        ("NonFiniteStep", "step 7", "data"),
        ("ReplicaDivergence", "rank 1", "node"),
        ("WrongProbe", "rank 1", "node"),
        ("RuntimeError", "[gloo/transport/tcp/pair.cc:534] Connection closed by peer", "network"),
    ],
)
def test_the_class_of_an_exception(name, message, expected):
    assert verdict(error_of(1, 2, 12, type=name, message=message)).kind == expected


@pytest.mark.parametrize(
    ("number", "more", "expected", "words"),
    [
        (9, {}, "node", "killed (SIGKILL) by something outside the run"),
        (9, {"oom_kills": 1}, "host OOM", "ran out of memory (1.0 GiB in all)"),
        (15, {}, "preemption", "SIGTERM"),
        (11, {}, "user bug", "crashed with SIGSEGV"),
        (7, {}, "user bug", "crashed with SIGBUS"),
    ],
)
def test_the_class_of_a_signal(number, more, expected, words):
    found = verdict(exit_of(1, 3, None, number, **more))
    assert (found.kind, found.rank, found.node) == (expected, 3, "d")
    assert words in found.sentence
    assert "rank 3 on node d, in phase step after step 12," in found.sentence


def test_the_cause_comes_before_its_echoes():
    echo = error_of(1, 0, message="Connection reset by peer")
    found = verdict(echo, exit_of(1, 0, 1), exit_of(1, 1, None, 9), error_of(1, 2, message="Broken pipe"))
    assert (found.kind, found.rank) == ("node", 1)


def test_the_first_of_several_causes():
    assert verdict(error_of(1, 3), error_of(1, 1)).rank == 3


def test_a_user_error_comes_before_everything_else():
    found = verdict(exit_of(1, 0, None, 9), error_of(1, 2, type="UserError", message="too long", user=True))
    assert found.user_error == "too long"


def test_a_user_error_that_mentions_a_connection_is_no_echo():
    assert verdict(error_of(1, 2, message="the hub: Connection refused", user=True)).user_error


def test_ranks_that_the_agent_killed_are_not_the_cause():
    assert not is_failure(exit_of(1, 0, None, 9, killed=True))
    found = verdict(exit_of(1, 0, None, 9, killed=True), exit_of(1, 1, None, 6))
    assert found.rank == 1


def test_an_unusable_checkpoint_carries_its_name():
    found = verdict(
        exit_of(1, 1, 1),
        error_of(1, 1, type="CheckpointUnusable", checkpoint={"step": 20, "attempt": 3, "reason": "hash"}),
    )
    assert (found.kind, found.checkpoint) == ("storage", (20, 3))


@pytest.mark.parametrize(("name", "loss"), [("NonFiniteStep", None), ("LossSpike", 9.5)])
def test_a_bad_step_carries_its_samples_and_is_a_matter_of_data(name, loss):
    found = verdict(error_of(1, 0, type=name, bad_step={"step": 7, "ranges": [[48, 50], [52, 58]], "loss": loss}))
    assert (found.kind, found.bad_step) == ("data", BadStep(7, ((48, 50), (52, 58)), loss))


def test_a_lost_node():
    found = verdict(event("node_lost", 1, -1, node="b", node_rank=1, message="the actor died"))
    assert (found.kind, found.node) == ("node", "b") and found.sentence == "node b was lost: the actor died"
    found = verdict(event("node_lost", 1, -1, node="gke-7", host="pod-1", node_rank=1, message="the actor died"))
    assert found.node == "gke-7" and found.sentence.startswith("node gke-7 (host pod-1) was lost")


def test_a_node_whose_loss_was_announced_is_a_preemption():
    data = {"node": "gke-7", "host": "pod-1", "node_rank": 1, "announced": True, "message": "the actor died"}
    found = verdict(event("node_lost", 1, -1, **data))
    assert (found.kind, found.node) == ("preemption", "gke-7") and "as announced" in found.sentence


def test_the_longest_silence_when_nobody_is_frozen():
    found = verdict(silent=((0, "step", 4.0), (2, "save", 9.0)))
    assert (found.kind, found.rank) == ("hang", 2)
    assert "9.0 s" in found.sentence


SILENT = tuple((rank, "step", 2.0 + rank / 10) for rank in range(4))
"""Rank 3 for longest."""
IN_COLLECTIVE = RankStack("S", 'Thread 0x1:\n  File "c10d.py", line 9 in all_reduce', True)
BUSY = RankStack("S", 'Thread 0x1:\n  File "feed.py", line 7 in decode', False)
STOPPED = RankStack("T", "State: T (stopped)")


def of_silence(stacks: dict[int, RankStack], *events, **places: Place):
    found = PLACES | {int(name[1:]): place for name, place in places.items()}
    return judge(Evidence(tuple(events), silent=SILENT, places=found, stacks=stacks))


def test_who_is_outside_any_collective_is_waited_for():
    found = of_silence({0: IN_COLLECTIVE, 1: BUSY, 2: IN_COLLECTIVE, 3: IN_COLLECTIVE})
    assert (found.kind, found.rank, found.node) == ("hang", 1, "b")
    assert "in feed.py:7 decode; 4 ranks are silent, 3 of them wait for others in a collective" in found.sentence


def test_a_stopped_process_comes_before_one_that_is_busy():
    found = of_silence({0: BUSY, 1: IN_COLLECTIVE, 2: STOPPED, 3: IN_COLLECTIVE})
    assert found.rank == 2 and "stopped by a signal" in found.sentence


def test_a_process_that_was_stopped_in_a_collective_is_no_victim():
    assert of_silence({0: IN_COLLECTIVE, 1: replace(IN_COLLECTIVE, state="T"), 3: IN_COLLECTIVE}).rank == 1


def test_the_state_before_the_kill_serves_where_no_stack_was_to_be_had():
    killed = exit_of(1, 1, None, 9, killed=True, state_before="D")
    found = of_silence({}, killed)
    assert found.rank == 1 and "waiting for a disk or a device" in found.sentence


def test_a_rank_whose_agent_does_not_answer_is_suspected_when_all_others_wait():
    assert of_silence({0: IN_COLLECTIVE, 1: IN_COLLECTIVE, 3: IN_COLLECTIVE}).rank == 2


@pytest.mark.parametrize(
    "behind", [Place("b", "step", 11), Place("b", "load", 12)], ids=["an earlier step", "an earlier phase"]
)
@pytest.mark.parametrize("stack", [None, BUSY, IN_COLLECTIVE], ids=["unknown", "outside", "in a collective"])
def test_of_those_that_are_alike_the_one_that_got_least_far(behind, stack):
    stacks = dict.fromkeys(range(4), stack) if stack else {}
    assert of_silence(stacks, r1=behind).rank == 1


def test_the_longest_silence_decides_between_equals_and_a_snapshot_is_as_far_as_a_save():
    places = {"r0": Place("a", "save", 12), **{f"r{n}": Place("x", "snapshot", 12) for n in (1, 2, 3)}}
    assert of_silence({}, **places).rank == 3


def test_when_all_wait_for_each_other_the_network_is_to_blame():
    found = of_silence(dict.fromkeys(range(4), IN_COLLECTIVE))
    assert (found.kind, found.rank) == ("network", None)
    assert "all 4 ranks wait for each other in a collective, for 2.3 s" in found.sentence


# -- from what the ranks said to who is named ------------------------------------------------------------------------
def trained(num_ranks: int = 2, steps: int = 20) -> Attempt:
    """An attempt with `steps` steps of 0.1 s behind it, the last at `steps` / 10 seconds."""
    attempt = Attempt(1, Stage.TRAIN, None, num_ranks, 0.0, limits=Limits(600.0, num_ranks))
    for number in range(1, steps + 1):
        for rank in range(num_ranks):
            attempt.hear(Event("phase", 1, rank, number, "step", number / 10 - 0.1, 0.1), number / 10)
    return attempt


def silent_at(attempt: Attempt, first_s: float, last_s: float):
    """Looking ten times a second, from one time to another."""
    for look in range(int(first_s * 10), int(last_s * 10) + 1):
        silent = attempt.silent(look / 10, limit_s=600.0)
    return silent


def test_a_frozen_rank_is_named_by_what_it_has_not_begun():
    attempt = trained()
    attempt.hear(Event("phase", 1, 0, 20, "eval", 2.0), 2.0)  # rank 1 never gets there
    assert not silent_at(attempt, 2.0, 3.7)
    assert attempt.patience_s(3.7, longest_s=0.5) == pytest.approx(0.2, abs=0.03)
    silent = silent_at(attempt, 3.8, 4.0)
    assert [rank for rank, _, _ in silent] == [0, 1]
    found = judge(attempt.evidence(silent, "", {}))
    assert found.rank == 1 and "rank 1, in phase step after step 20, gave no sign of life for 2.0 s" in found.sentence


def test_a_result_that_was_held_back_does_not_throw_a_rank_back():
    attempt = trained()
    for rank in range(2):
        attempt.hear(Event("phase", 1, rank, 20, "snapshot", 2.0), 2.0)
    attempt.hear(Event("step", 1, 0, 20, "step", 1.9, 0.1), 2.1)
    places = attempt.evidence((), "").places
    assert [places[rank].phase for rank in range(2)] == ["snapshot", "snapshot"]


def test_the_check_and_the_export_have_the_configured_limit():
    attempt = Attempt(1, Stage.EXPORT, None, 1, 0.0, limits=Limits(600.0, 1))
    assert not silent_at(attempt, 0.0, 599.0)
    assert attempt.silent(601.0, 600.0)


def test_the_verdict_over_10_000_ranks_takes_less_than_a_second():
    num_ranks = 10_000
    attempt = trained(num_ranks, steps=12)
    silent_at(attempt, 1.2, 3.9)
    began = time.process_time()
    silent = attempt.silent(4.0, 600.0)
    stacks = dict.fromkeys(range(num_ranks), IN_COLLECTIVE) | {7777: BUSY}
    found = judge(attempt.evidence(silent, "", stacks))
    assert time.process_time() - began < 5.0, "the bar is 1 s on a machine of its own"
    assert found.rank == 7777 and len(silent) == num_ranks


@pytest.mark.parametrize("name", ["ReplicaDivergence", "WrongProbe", "WrongResult"])
def test_the_suspects_are_named_whoever_says_it_first(name):
    """Every rank raises it, the odd ones too."""
    found = verdict(error_of(1, 0, 12, type=name, message="rank 2 differs", suspects=[2, 3]))
    assert (found.rank, found.node, found.suspects) == (2, "c", ("c", "d"))


def test_a_snapshot_that_could_not_be_reached_is_no_damaged_one():
    away = {"step": 11, "attempt": 1}
    found = verdict(error_of(1, 0, 11, type="SnapshotUnreachable", message="timed out", unreachable=away))
    assert (found.kind, found.checkpoint, found.unreachable) == ("network", None, (11, 1))


def test_a_lost_node_comes_before_those_who_could_not_reach_it():
    lost = event("node_lost", 0, -1, node="b", node_rank=1, message="the actor died", announced=False)
    away = {"step": 11, "attempt": 1}
    refused = error_of(1, 0, 11, type="SnapshotUnreachable", message="Connection refused", unreachable=away)
    assert verdict(refused, lost).sentence == "node b was lost: the actor died"
