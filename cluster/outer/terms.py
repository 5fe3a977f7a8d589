"""What the silos of a run agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from zerofleet.trainer.silos.codecs import Codec
from zerofleet.trainer.silos.strategies import Strategy

if TYPE_CHECKING:
    from zerofleet.cluster.outer.masked import MaskedRound

Aggregation = Literal["mean", "trimmed_mean", "median"]


@dataclass(frozen=True)
class Terms:
    """Of all rounds."""

    weights: Mapping[str, float]
    """By silo: what its tokens are multiplied by."""
    strategy: Strategy
    codec: Codec
    quorum: int
    deadline_s: float
    aggregation: Aggregation = "mean"
    trimmed_fraction: float = 0.2
    """Of `trimmed_mean`: share of the silos whose values are left out on either side, rounded up."""
    masked_limit: float | None = None
    """Secure aggregation: what tokens x weight of all silos in a round cannot exceed together. None: without it."""

    def masked_round(self, number: int) -> MaskedRound | None:
        """Of a run with secure aggregation."""
        if self.masked_limit is None:
            return None
        from zerofleet.cluster.outer.masked import MaskedRound  # brings an extra

        return MaskedRound(number, self.quorum, self.deadline_s, self.masked_limit)
