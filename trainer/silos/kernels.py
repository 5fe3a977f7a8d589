"""The loops over a delta's elements, compiled by numba; without the interpreter's lock, so that threads work side by side."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(
    nogil=True
)  # no cache on disk: an installation may be read-only. No fastmath: it would take the rounding away.
def add_rounded(
    total: NDArray[np.float64], values: NDArray[np.float32], weight: float, magic: float, limit: float
) -> int:
    """total += round(weight * values) to whole multiples of a quantum, where `magic` = 1.5 * 2^52 quanta; returns how many values are
    not within +-`limit` (or NaN), which add nothing. Called with -weight it takes away exactly what it added."""
    num_beyond = 0
    for index in range(total.size):
        value = np.float64(values[index])
        is_usable = abs(value) <= limit
        product = weight * value if is_usable else 0.0
        num_beyond += not is_usable
        total[index] += (product + magic) - magic
    return num_beyond


@numba.njit(nogil=True, fastmath={"reassoc"})  # so that the sum is taken in several lanes
def sum_of_squares(values: NDArray[np.float32]) -> float:
    """In fp64; NaN or infinite where a value is."""
    total = 0.0
    for index in range(values.size):
        value = np.float64(values[index])
        total += value * value
    return total
