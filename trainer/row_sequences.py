"""Spares a forward the question whether its rows hold several sequences, where it is known that each is one.

transformers 5.23 asks that of every batch without a mask, by comparing position ids that it has just counted itself (`find_packed_sequence_indices`): on a GPU the host
waits for all work before, in each micro-batch. No public setting answers it: a mask of ones is looked through in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import masking_utils


@contextlib.contextmanager
def one_sequence_per_row() -> Iterator[None]:
    """Within it models take every row of a batch for one sequence. The answer is the one that they would find."""
    asks: Any = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = asks
