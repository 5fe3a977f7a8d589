"""The outer step over whole deliveries: who is left out, and what becomes of the weights. Pure, but for where deliveries are kept."""

from __future__ import annotations

from collections.abc import Mapping

from zerofleet.cluster.outer.delivery import Delivery
from zerofleet.cluster.outer.state import Arrays, OuterState
from zerofleet.trainer.silos.aggregation import Contribution, mean_deltas
from zerofleet.trainer.silos.chunks import chunks_of
from zerofleet.trainer.silos.inspection import judge
from zerofleet.trainer.silos.strategies import Strategy


def odd_ones(deliveries: Mapping[str, Delivery]) -> dict[str, str]:
    """Why not, by silo whose delta lies far from the others'."""
    return dict(judge({silo: delivery.norm for silo, delivery in deliveries.items()}).rejected)


def stepped(
    state: OuterState, strategy: Strategy, deliveries: Mapping[str, Delivery], weights: Mapping[str, float]
) -> tuple[Arrays, dict[str, Arrays]]:
    """Weights and moments after the step, beside those before it: storage may not take them. A chunk at a time."""
    after = {name: array.copy() for name, array in state.weights.items()}
    moments = {kind: {name: array.copy() for name, array in arrays.items()} for kind, arrays in state.moments.items()}
    contributions = {silo: Contribution(weights[silo], delivery.read) for silo, delivery in deliveries.items()}
    for chunk, mean in mean_deltas(chunks_of(state.sizes), contributions, sum(weights.values())):
        part = slice(chunk.start, chunk.start + chunk.count)
        strategy.step(
            after[chunk.name][part], mean, {kind: arrays[chunk.name][part] for kind, arrays in moments.items()}
        )
    return after, moments
