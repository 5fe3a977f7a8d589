"""The outer step over chunks: the same on any number of cores, and none of it where a chunk cannot be used."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from zerofleet.cluster.outer.state import OuterState
from zerofleet.cluster.outer.step import Means, in_threads, stepped
from zerofleet.trainer.silos.chunks import Chunk, chunks_of
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.strategies import FunctionStrategy, diloco

SIZES = {"a": 1000, "b": 37, "c": 500}
STRATEGY = FunctionStrategy(diloco, ("momentum",), {"lr": 0.7})


def initial() -> OuterState:
    draw = np.random.default_rng(0)
    return OuterState.initial(
        {name: draw.standard_normal(size, np.float32) for name, size in SIZES.items()}, ["momentum"]
    )


def mean(chunk: Chunk) -> np.ndarray:
    return (np.arange(chunk.start, chunk.start + chunk.count) + len(chunk.name)).astype(np.float32)


def test_every_element_takes_the_step_once_and_the_state_before_it_stays():
    before, whole = initial(), initial()
    after, moments = stepped(before, STRATEGY, Means(chunks_of(SIZES, 64), mean))
    for name, size in SIZES.items():
        STRATEGY.step(whole.weights[name], mean(Chunk(name, 0, size)), {"momentum": whole.moments["momentum"][name]})
        np.testing.assert_array_equal(after[name], whole.weights[name])
        np.testing.assert_array_equal(moments["momentum"][name], whole.moments["momentum"][name])
        np.testing.assert_array_equal(before.weights[name], initial().weights[name])


def test_chunks_are_taken_side_by_side():
    """Each waits for the other: one after the other they would wait in vain."""
    both = threading.Barrier(2, timeout=10)
    in_threads(lambda chunk: both.wait() and None, [Chunk("a", 0, 1), Chunk("a", 1, 1)], 2)


def test_a_chunk_that_cannot_be_used_is_raised():
    def refuse(chunk: Chunk) -> np.ndarray:
        if chunk.start == 192:
            raise UnusableDelta("element 200 is nan")
        return mean(chunk)

    with pytest.raises(UnusableDelta, match="element 200 is nan"):
        stepped(initial(), STRATEGY, Means(chunks_of(SIZES, 64), refuse))
