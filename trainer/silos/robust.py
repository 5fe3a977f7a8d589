"""Means that some silos cannot move at will, whatever they send: coordinate-wise trimmed mean and median (Yin et al., "Byzantine-Robust
Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, definitions 1 and 2).

Both need the values of all silos of a chunk at once: memory is silos x the size of a chunk, not of the model. Silos count alike: a silo that lies about
its delta would lie about its tokens too. Where silos' data differ, honest deltas differ as well, and leaving out the outermost values
costs accuracy; with all silos honest, the plain mean is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.errors import UserError
from zerofleet.trainer.silos.aggregation import Contribution
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.codecs import check_finite

Float32 = NDArray[np.float32]


def trimmed_mean(values: Float32, num_trimmed: int) -> Float32:
    """`values` [silos, count], finite -> [count]: in each element the mean without the `num_trimmed` largest and smallest, so that as
    many silos may be hostile. Raises UserError where nothing would be left."""
    num_silos = len(values)
    if not 0 <= 2 * num_trimmed < num_silos:
        raise UserError(
            f"a trimmed mean that leaves out {num_trimmed} silos on either side needs at least {2 * num_trimmed + 1} silos, and {num_silos} take part. "
            "Leave out fewer, or ask for a larger quorum"
        )
    # Sorted, so that the order in which silos come is not the order in which they are added.
    kept = _sorted_by_silo(values)[:, num_trimmed : num_silos - num_trimmed]
    mean: Float32 = kept.mean(axis=1, dtype=np.float64).astype(np.float32)
    return mean


def coordinate_median(values: Float32) -> Float32:
    """`values` [silos, count], finite -> [count]: the median of each element, the mean of the two in the middle where silos are even in number.
    Holds while fewer than half of the silos are hostile."""
    num_silos = len(values)
    assert num_silos
    return trimmed_mean(values, (num_silos - 1) // 2)


def robust_delta(
    chunk: Chunk, contributions: Mapping[str, Contribution], combine: Callable[[Float32], Float32]
) -> Float32:
    """As `mean_delta`, by one of the functions above instead of the mean; weights do not count. Raises UnusableDelta where a value is not finite."""
    values = np.stack([contribution.read(chunk) for contribution in contributions.values()])
    check_finite(values.reshape(-1))
    return combine(values)


def _sorted_by_silo(values: Float32) -> Float32:
    """[silos, count] -> [count, silos], ascending over the silos."""
    columns: Float32 = np.ascontiguousarray(values.T)
    columns.sort(axis=1)
    return columns
