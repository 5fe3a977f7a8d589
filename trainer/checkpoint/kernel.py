"""The digest's inner loop, compiled by numba; without the interpreter's lock, so that threads hash side by side."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1, _MULTIPLIER_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ONE, _SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(1), np.uint64(30), np.uint64(27), np.uint64(31)


@numba.njit(nogil=True)  # no cache on disk: an installation may be read-only
def sum_of_mixes(bits: npt.NDArray[np.unsignedinteger], start: np.uint64) -> np.uint64:
    """fragments.digest's sum over unsigned integers `bits` [n], the first of which is element `start`. Every operand is a
    uint64: numba would make floats of a mix with signed ones."""
    total = np.uint64(0)
    offset = (start + _ONE) * _GOLDEN
    for index in range(bits.size):
        mixed = np.uint64(bits[index]) + offset
        offset += _GOLDEN
        mixed ^= mixed >> _SHIFT_1
        mixed *= _MULTIPLIER_1
        mixed ^= mixed >> _SHIFT_2
        mixed *= _MULTIPLIER_2
        mixed ^= mixed >> _SHIFT_3
        total += mixed
    return total
