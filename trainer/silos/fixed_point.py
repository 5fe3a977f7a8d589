"""Deltas as whole numbers modulo 2^k, whose sums are exact: what masks can be added to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.silos.errors import UnusableDelta

Float32 = NDArray[np.float32]
Words = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class FixedPoint:
    """Words of `bits` bits for values within +-`max_magnitude`, such that weighted sums over silos do not wrap around.

    A silo's value counts with its share, its weight by the most that all weights together can be: the shares' sum is at most 1, and so is the sum of
    shares x values at most `max_magnitude`. Rounding costs at most half a quantum per silo. 64 bits are as exact as fp32 in any case;
    32 bits are with a `max_magnitude` near what deltas really hold.
    """

    bits: Literal[16, 32, 64]
    max_magnitude: float

    @property
    def quantum(self) -> float:
        """What one unit stands for: a power of two, with a bit to spare for the rounding of each silo."""
        return 2.0 ** math.ceil(math.log2(self.max_magnitude) - (self.bits - 2))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<u{self.bits // 8}")

    def encode(self, values: Float32, share: float) -> Words:
        """share x value in quanta, rounded to nearest, modulo 2^bits [count]. Raises UnusableDelta for values that are NaN or beyond the limit."""
        assert 0 < share <= 1
        if not (np.abs(values) <= self.max_magnitude).all():
            first = int(np.flatnonzero(~(np.abs(values) <= self.max_magnitude))[0])
            raise UnusableDelta(
                f"element {first} is {values[first]}, beyond the +-{self.max_magnitude:g} that fixed point was made for"
            )
        quanta = np.rint(values.astype(np.float64) * (share / self.quantum)).astype(np.int64)
        return quanta.astype(self.dtype)  # keeps the lowest bits: modulo 2^bits

    def decode_mean(self, total: Words, total_share: float) -> Float32:
        """The weighted mean [count] of what adds up to `total` modulo 2^bits, with the sum of its shares."""
        signed = total.view(np.dtype(f"<i{self.bits // 8}"))
        mean: Float32 = (signed * (self.quantum / total_share)).astype(np.float32)
        return mean


MASKED = FixedPoint(32, 4.0)
"""Of runs with secure aggregation: exact to 2^-28 in the sum. A delta beyond +-4 is none that training makes."""
