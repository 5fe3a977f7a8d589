"""The loops over a delta's elements, compiled by numba; without the interpreter's lock, so that threads work side by side."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

ADDED_AT_ONCE = 4
"""Arrays that `add_rounded` adds in one pass: the sum, twice as wide as they are, is read and written once for all of them."""


@numba.njit(
    nogil=True
)  # no cache on disk: an installation may be read-only. No fastmath: it would take the rounding away.
def add_rounded(
    total: NDArray[np.float64],
    values: tuple[Float32, ...],
    weights: tuple[float, ...],
    magic: float,
    limit: float,
) -> int:
    """total += sum over ADDED_AT_ONCE arrays of round(weight * values) to whole multiples of a quantum, where `magic` = 1.5 * 2^52 quanta; returns how many
    values are not within +-`limit` (or NaN), which add nothing. Called with -weights it takes away exactly what it added."""
    a, b, c, d = values
    num_beyond = 0
    for index in range(total.size):
        x, y, z, w = np.float64(a[index]), np.float64(b[index]), np.float64(c[index]), np.float64(d[index])
        x_fits, y_fits, z_fits, w_fits = abs(x) <= limit, abs(y) <= limit, abs(z) <= limit, abs(w) <= limit
        num_beyond += (not x_fits) + (not y_fits) + (not z_fits) + (not w_fits)
        first = weights[0] * x if x_fits else 0.0
        second = weights[1] * y if y_fits else 0.0
        third = weights[2] * z if z_fits else 0.0
        fourth = weights[3] * w if w_fits else 0.0
        total[index] += (((first + magic) - magic) + ((second + magic) - magic)) + (
            ((third + magic) - magic) + ((fourth + magic) - magic)
        )
    return num_beyond


@numba.njit(nogil=True, fastmath={"reassoc"})  # so that the sum is taken in several lanes
def sum_of_squares(values: NDArray[np.float32]) -> float:
    """In fp64; NaN or infinite where a value is."""
    total = 0.0
    for index in range(values.size):
        value = np.float64(values[index])
        total += value * value
    return total
