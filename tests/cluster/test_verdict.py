"""From evidence to a class and a sentence."""

from __future__ import annotations

import pytest

from tests.cluster.fakes import error_of, event, exit_of
from zerofleet.cluster.verdict import Evidence, Place, is_failure, judge

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


def test_a_non_finite_step_carries_its_number():
    assert verdict(error_of(1, 0, type="NonFiniteStep", non_finite_step=7)).non_finite_step == 7


def test_a_lost_node():
    found = verdict(event("node_lost", 1, -1, node="b", node_rank=1, message="the actor died"))
    assert (found.kind, found.node) == ("node", "b")


def test_the_longest_silence_when_nobody_is_frozen():
    found = verdict(silent=((0, "step", 4.0), (2, "save", 9.0)))
    assert (found.kind, found.rank) == ("hang", 2)
    assert "9 s" in found.sentence


def test_the_end_of_a_zygote_shows_its_last_line():
    found = verdict(exit_of(1, 0, None, 9, zygote_code=1, zygote_log="Traceback\nImportError: no torch\n"))
    assert "ImportError: no torch" in found.sentence
    assert found.frames, "the same end twice must be recognised"


def test_an_exit_code_without_a_word():
    assert "exit code 3 and said nothing" in verdict(exit_of(1, 1, 3)).sentence
