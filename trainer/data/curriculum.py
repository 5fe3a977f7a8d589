"""Curriculum by length: each epoch goes from short documents to long ones. Pure.

The samples of a source are ranked by the mean length of the documents in them and cut into stages of equal size; stages follow each other, and each is
shuffled by a permutation of its own. A cycle per epoch, as in Pouransari et al., "Dataset Decomposition: Faster LLM Training with Variable Sequence
Length Curriculum", NeurIPS 2024, who found cycles to be better than one pass from short to long; here the sequence length, and with it the number of
tokens of a step, stays.

The order is frozen: runs resume by position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zerofleet.trainer.data.order import key_of, permuted

Int64 = NDArray[np.int64]


def ranks_by_length(num_tokens: NDArray[np.integer], num_pieces: NDArray[np.integer]) -> Int64:
    """Samples by the mean length of what they are made of, ascending, equal ones in the order that they have."""
    return np.argsort(num_tokens // num_pieces, kind="stable")


def staged_ranks(positions: Int64, num_samples: int, num_stages: int, seed: int, source: str, silo: str) -> Int64:
    """The rank in [0, num_samples) at each position; epoch e is positions [e * num_samples, (e + 1) * num_samples), and its stage k the
    ranks [k * num_samples // num_stages, (k + 1) * num_samples // num_stages). O(1) in the position."""
    epochs, within = np.divmod(positions, num_samples)
    bounds = np.arange(num_stages + 1) * num_samples // num_stages
    stages = np.searchsorted(bounds, within, side="right") - 1
    ranks = np.empty(len(positions), np.int64)
    # A step lies in one stage of one epoch, now and then in two.
    for epoch, stage in sorted({*zip(epochs.tolist(), stages.tolist(), strict=True)}):
        mine = (epochs == epoch) & (stages == stage)
        start, stop = bounds[stage : stage + 2].tolist()
        key = np.array([key_of(seed, source, epoch, silo, stage)], np.uint64)
        ranks[mine] = start + permuted(within[mine] - start, stop - start, key)
    return ranks
