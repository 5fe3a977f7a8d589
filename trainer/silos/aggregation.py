"""The weighted mean of silos' deltas, chunk by chunk as they come: the same bits in whatever order they come, in memory that does not
grow with the number of silos.

Sums of floating-point numbers depend on their order because each addition rounds. Here each contribution is rounded once, on its
own, to a whole multiple of one quantum that is fixed beforehand, and the sum of those is exact: fp64 holds whole multiples of
2^-44 up to 2^9 without rounding. This is the pre-rounding of Demmel & Nguyen, "Fast Reproducible Floating-Point Summation" (ARITH 2013),
with a fixed bin. (x + M) - M with M = 1.5 * 2^52 quanta is the rounding. The price is an absolute error of up to half a quantum,
2.8e-14, per silo in the sum, and a limit on what a delta may hold; fp32 weights of 1e-6 have a last place of 1e-13.

A silo counts with all of its delta or with nothing. So whoever receives deltas looks at whole ones first (inspection.py), and takes the mean
of those that passed, from where they were kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.errors import UnusableDelta
from zerofleet.trainer.silos.kernels import ADDED_AT_ONCE, add_rounded

Float32 = NDArray[np.float32]

_QUANTUM = 2.0**-44
_MAGIC = 1.5 * 2**52 * _QUANTUM
MAX_MAGNITUDE = 64.0
"""No element of a delta may be larger. Weights of models are below 10, and a delta is a part of them."""


class ChunkSum:
    """The weighted sum of one chunk over silos. Memory: 8 bytes an element, however many silos there are."""

    def __init__(self, count: int, weight_limit: float) -> None:
        """`weight_limit`: what the weights of all silos cannot exceed together, such as the tokens of a round in which all take part. It is part
        of the rounding, so it must be the same wherever the same bits are to come out."""
        assert weight_limit > 0
        self._total = np.zeros(count, np.float64)
        self._weight_limit = weight_limit
        self._weights: dict[str, float] = {}

    @property
    def silos(self) -> frozenset[str]:
        """Who has contributed."""
        return frozenset(self._weights)

    def add(self, parts: Mapping[str, tuple[float, Float32]]) -> None:
        """By silo its weight, such as the tokens that it trained on in this round, and its values [count]; at most ADDED_AT_ONCE silos.

        Raises UnusableDelta, and leaves the sum as it was, for elements that are NaN, infinite or beyond MAX_MAGNITUDE, and for a weight that is not
        above 0 or takes the sum of all beyond the limit.
        """
        assert 1 <= len(parts) <= ADDED_AT_ONCE
        assert not self._weights.keys() & parts.keys(), f"one of {list(parts)} has contributed already"
        weights = dict(self._weights)
        for silo, (weight, values) in parts.items():
            assert values.shape == self._total.shape and values.dtype == np.float32
            weights[silo] = weight
            if not (weight > 0 and math.fsum(weights.values()) <= self._weight_limit):
                raise UnusableDelta(
                    f"silo {silo} counts with a weight of {weight:g}, where all silos of the round together cannot have more than {self._weight_limit:g}"
                )
        # Whoever is missing stands in with a weight of nothing.
        given = list(parts.values())
        given += [(0.0, given[0][1])] * (ADDED_AT_ONCE - len(given))
        arrays, shares = tuple(values for _, values in given), [weight / self._weight_limit for weight, _ in given]
        if add_rounded(self._total, arrays, tuple(shares), _MAGIC, MAX_MAGNITUDE):
            add_rounded(self._total, arrays, tuple(-share for share in shares), _MAGIC, MAX_MAGNITUDE)
            whys = ((silo, why_unusable(values)) for silo, (_, values) in parts.items())
            raise UnusableDelta(next(f"silo {silo}: {why}" for silo, why in whys if why))
        self._weights = weights

    def mean(self) -> Float32:
        """Sum of weight x value by the sum of the weights [count]; of at least one silo."""
        assert self._weights
        mean = np.empty(self._total.shape, np.float32)
        factor = self._weight_limit / math.fsum(self._weights.values())
        return np.multiply(self._total, factor, out=mean, casting="same_kind")  # in fp64, and rounded once


@dataclass(frozen=True)
class Contribution:
    """A silo's delta that was received whole, and how to read it."""

    weight: float
    """Such as the tokens that the silo trained on in this round."""
    read: Callable[[Chunk], Float32]
    """The values of a chunk [count], decoded."""


def mean_delta(chunk: Chunk, contributions: Mapping[str, Contribution], weight_limit: float) -> Float32:
    """The mean of a chunk over all silos [count]. Its sum and ADDED_AT_ONCE silos' values of it are in memory at a time."""
    total, silos = ChunkSum(chunk.count, weight_limit), iter(contributions.items())
    while group := list(itertools.islice(silos, ADDED_AT_ONCE)):
        total.add({silo: (contribution.weight, contribution.read(chunk)) for silo, contribution in group})
    return total.mean()


def why_unusable(values: Float32) -> str:
    """How many elements of a chunk cannot be used, and the first of them; empty where all can."""
    beyond = np.flatnonzero(~(np.abs(values) <= MAX_MAGNITUDE))
    if not len(beyond):
        return ""
    first = int(beyond[0])
    return f"{len(beyond)} of {len(values)} elements are not within +-{MAX_MAGNITUDE:g}, the first of them {values[first]} (element {first})"
