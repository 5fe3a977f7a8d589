"""What is known of silos' deltas before they count: finite, within limits, and of a size like the others'. Who passes is a pure function of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.silos.aggregation import MAX_MAGNITUDE, why_unusable
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.kernels import sum_of_squares

Float32 = NDArray[np.float32]

MAX_NORM_RATIO = 10.0
"""How many times the median norm of the other silos' deltas a delta's norm may be."""
FEWEST_TO_COMPARE = 3
"""Of two deltas nobody can say which one is odd: a silo that has just joined sends a small one."""


def inspect(values: Float32) -> float:
    """The sum of squares of a chunk's values [count]; the root of the sum over all chunks (math.fsum, which depends on no order) is the delta's norm.

    Raises UnusableDelta for values that are NaN, infinite or beyond MAX_MAGNITUDE: nothing of this delta may be used then.
    """
    squares = sum_of_squares(values)
    # Only a sum that may hide one is worth looking closer.
    if not squares <= MAX_MAGNITUDE**2 and (why := why_unusable(values)):
        raise UnusableDelta(why)
    return squares


@dataclass(frozen=True)
class Verdict:
    """Whose deltas count."""

    accepted: frozenset[str]
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Why not, by silo."""


def judge(norms: Mapping[str, float], max_norm_ratio: float = MAX_NORM_RATIO) -> Verdict:
    """Of the whole deltas that came in, by silo, those whose norm is not far from the others': more than `max_norm_ratio` times the median norm
    of the other silos is garbage. The median of the others cannot be moved far while fewer than half of them send garbage. A delta that is merely
    small does no harm. Of fewer than FEWEST_TO_COMPARE all are accepted.

    It does not see a delta of the usual size that points somewhere wrong: robust.py is for that.
    """
    rejected = {}
    for silo, norm in norms.items():
        usual = statistics.median([norms[other] for other in norms if other != silo] or [0.0])
        if len(norms) >= FEWEST_TO_COMPARE and usual > 0 and not norm <= max_norm_ratio * usual:
            rejected[silo] = (
                f"silo {silo}: its delta's norm is {norm:.3g}, {norm / usual:.3g} times the median of the other silos' ({usual:.3g}); "
                f"{max_norm_ratio:g} times is the limit"
            )
    return Verdict(frozenset(norms) - set(rejected), rejected)
