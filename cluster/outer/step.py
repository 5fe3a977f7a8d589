"""The outer step over whole deliveries: who is left out, and what becomes of the weights. Pure, but for where deliveries are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from zerofleet.cluster.outer.delivery import Delivery
from zerofleet.cluster.outer.state import Arrays, Float32, OuterState
from zerofleet.cluster.outer.terms import Terms
from zerofleet.cluster.policy.rounds import num_trimmed_of
from zerofleet.trainer.silos.aggregation import Contribution, mean_deltas
from zerofleet.trainer.silos.chunks import SUMMED_ELEMENTS, Chunk, chunks_of
from zerofleet.trainer.silos.inspection import judge
from zerofleet.trainer.silos.robust import coordinate_median, robust_deltas, trimmed_mean
from zerofleet.trainer.silos.strategies import Strategy


def odd_ones(deliveries: Mapping[str, Delivery]) -> dict[str, str]:
    """Why not, by silo whose delta lies far from the others'."""
    return dict(judge({silo: delivery.norm for silo, delivery in deliveries.items()}).rejected)


def means_of(
    terms: Terms, sizes: Mapping[str, int], deliveries: Mapping[str, Delivery], weights: Mapping[str, float]
) -> Iterator[tuple[Chunk, Float32]]:
    """Of the deliveries of at least one silo, chunk by chunk, as the terms say."""
    contributions = {silo: Contribution(weights[silo], delivery.read) for silo, delivery in deliveries.items()}
    match terms.aggregation:
        case "mean":
            return mean_deltas(chunks_of(sizes, SUMMED_ELEMENTS), contributions, sum(weights.values()))
        case "median":
            return robust_deltas(chunks_of(sizes), contributions, coordinate_median)
        case "trimmed_mean":
            num_trimmed = num_trimmed_of(terms.trimmed_fraction, len(contributions))
            return robust_deltas(chunks_of(sizes), contributions, lambda values: trimmed_mean(values, num_trimmed))


def stepped(
    state: OuterState, strategy: Strategy, means: Iterable[tuple[Chunk, Float32]]
) -> tuple[Arrays, dict[str, Arrays]]:
    """Weights and moments after the step, beside those before it: storage may not take them. A chunk at a time."""
    after = {name: array.copy() for name, array in state.weights.items()}
    moments = {kind: {name: array.copy() for name, array in arrays.items()} for kind, arrays in state.moments.items()}
    for chunk, mean in means:
        part = slice(chunk.start, chunk.start + chunk.count)
        strategy.step(
            after[chunk.name][part], mean, {kind: arrays[chunk.name][part] for kind, arrays in moments.items()}
        )
    return after, moments
