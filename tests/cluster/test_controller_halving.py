"""Memory that runs out, through the controller: micro-batches are halved where the recipe allows it, for all later attempts."""

from __future__ import annotations

import pytest

from tests.cluster.fakes import FakeSelection, ended, error_of, event, exit_of, harness, step
from zerofleet.cluster.policy.failure import Terms
from zerofleet.cluster.state import State
from zerofleet.trainer.run_folder import CheckpointId

FIVE = FakeSelection(CheckpointId(5, 1), found=1)
OOM = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


def loads(attempt):
    return [event("phase", attempt, rank, 0, "load") for rank in (0, 1)]


def runs_out(attempt, last):
    """In its sixth step, until the attempt `last`."""
    if attempt >= last:
        return [loads(attempt), step(attempt, 6), ended(attempt, "finished", 6)]
    return [loads(attempt), [error_of(attempt, 1, 5, type="RuntimeError", message=OOM)]]


def test_halved_until_it_fits_and_said():
    h = harness(lambda a: runs_out(a, 3), selections=[FIVE], terms=Terms((), 4, 1))
    assert h.run().state is State.FINISHED
    assert h.micro_batch_sizes == [4, 2, 1]
    first, second = h.said("verdict")
    assert (first.data["class"], first.data["action"]) == ("host OOM", "halve")
    assert ". Going on: micro-batches of 4 sequences do not fit; from here on they are of 2" in first.data["sentence"]
    assert "of 2 sequences do not fit" in second.data["sentence"]


def test_what_the_kernel_kills_is_halved_too():
    def train(attempt):
        killed = exit_of(attempt, 1, None, 9, oom_kills=1)
        return [loads(attempt), [killed]] if attempt == 1 else runs_out(attempt, 2)

    h = harness(train, selections=[FIVE], terms=Terms((), 4, 1))
    assert h.run().state is State.FINISHED and h.micro_batch_sizes == [4, 2]


def test_later_failures_keep_it():
    def train(attempt):
        return runs_out(attempt, 2) if attempt != 2 else [loads(2), [exit_of(2, 0, None, 9)]]

    h = harness(train, selections=[FIVE], terms=Terms((), 4, 1))
    assert h.run().state is State.FINISHED and h.micro_batch_sizes == [4, 2, 2]


@pytest.mark.parametrize("terms", [Terms(), Terms((), 4), Terms((), 1, 1)])
def test_without_leave_it_is_tried_as_it_is_and_the_same_twice_ends_the_run(terms):
    h = harness(lambda a: runs_out(a, 9), selections=[FIVE], terms=terms)
    assert h.run().state is State.FAILED
    assert set(h.micro_batch_sizes) == {terms.micro_batch_size}


def test_memory_that_runs_out_before_there_is_a_model_says_nothing_about_micro_batches():
    def train(attempt):
        return [[error_of(1, 1, type="MemoryError", message="")]] if attempt == 1 else runs_out(attempt, 1)

    h = harness(train, selections=[FIVE], terms=Terms((), 4, 1))
    assert h.run().state is State.FINISHED and h.micro_batch_sizes == [4, 4]
