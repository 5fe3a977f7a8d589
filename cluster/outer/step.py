"""The outer step over whole deliveries: who is left out, and what becomes of the weights. Pure, but for where deliveries are kept."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from zerofleet.cluster.outer.delivery import Delivery
from zerofleet.cluster.outer.state import Arrays, Float32, OuterState
from zerofleet.cluster.outer.terms import Terms
from zerofleet.cluster.policy.rounds import num_trimmed_of
from zerofleet.trainer.silos.aggregation import Contribution, mean_delta
from zerofleet.trainer.silos.chunks import SUMMED_ELEMENTS, Chunk, chunks_of
from zerofleet.trainer.silos.inspection import judge
from zerofleet.trainer.silos.robust import coordinate_median, robust_delta, trimmed_mean
from zerofleet.trainer.silos.strategies import Strategy


def odd_ones(deliveries: Mapping[str, Delivery]) -> dict[str, str]:
    """Why not, by silo whose delta lies far from the others'."""
    return dict(judge({silo: delivery.norm for silo, delivery in deliveries.items()}).rejected)


@dataclass(frozen=True)
class Means:
    """Of what silos delivered: the mean of any of the chunks, from any thread."""

    chunks: Iterable[Chunk]
    of: Callable[[Chunk], Float32]


def means_of(
    terms: Terms, sizes: Mapping[str, int], deliveries: Mapping[str, Delivery], weights: Mapping[str, float]
) -> Means:
    """Of the deliveries of at least one silo, as the terms say."""
    contributions = {silo: Contribution(weights[silo], delivery.read) for silo, delivery in deliveries.items()}
    match terms.aggregation:
        case "mean":
            limit = math.fsum(weights.values())  # as ChunkSum adds them up: a plain sum may come out below
            return Means(chunks_of(sizes, SUMMED_ELEMENTS), lambda chunk: mean_delta(chunk, contributions, limit))
        case "median":
            return Means(chunks_of(sizes), lambda chunk: robust_delta(chunk, contributions, coordinate_median))
        case "trimmed_mean":
            num_trimmed = num_trimmed_of(terms.trimmed_fraction, len(contributions))
            return Means(
                chunks_of(sizes),
                lambda chunk: robust_delta(chunk, contributions, lambda values: trimmed_mean(values, num_trimmed)),
            )


def stepped(state: OuterState, strategy: Strategy, means: Means) -> tuple[Arrays, dict[str, Arrays]]:
    """Weights and moments after the step, beside those before it: storage may not take them. A chunk at a time on each core: silos wait for it."""
    after = {name: array.copy() for name, array in state.weights.items()}
    moments = {kind: {name: array.copy() for name, array in arrays.items()} for kind, arrays in state.moments.items()}

    def step(chunk: Chunk) -> None:
        part = slice(chunk.start, chunk.start + chunk.count)
        parts = {kind: arrays[chunk.name][part] for kind, arrays in moments.items()}
        strategy.step(after[chunk.name][part], means.of(chunk), parts)

    in_threads(step, means.chunks, len(os.sched_getaffinity(0)))
    return after, moments


def in_threads(action: Callable[[Chunk], None], chunks: Iterable[Chunk], num_threads: int) -> None:
    """Each chunk once, in any order. Raises what the first of them raises that does."""
    with ThreadPoolExecutor(num_threads, "chunks") as pool:
        for _ in pool.map(action, chunks):
            pass
