"""What the verb shows; tests/integration/test_stacks.py asks a real run."""

from __future__ import annotations

import pytest

from zerofleet.launch.commands.stacks import _shown
from zerofleet.trainer.errors import NotFoundError

RANKS = {"10": "S Thread 0x1:\n  in all_gather\n", "2": "T the process is stopped", "3": " "}


def test_ranks_in_order_with_what_the_kernel_says_of_them():
    assert _shown(RANKS, None) == (
        "==> rank 2, stopped by a signal <==\nthe process is stopped\n\n==> rank 3, gone <==\n\n\n"
        "==> rank 10, waiting <==\nThread 0x1:\n  in all_gather\n"
    )


def test_one_rank_alone_and_one_that_is_not_there():
    assert _shown(RANKS, 10).startswith("==> rank 10, waiting <==")
    with pytest.raises(NotFoundError, match="there is no rank 4: there are ranks 2 to 10"):
        _shown(RANKS, 4)
    with pytest.raises(NotFoundError, match="no rank is up"):
        _shown({}, 0)
    assert _shown({}, None) == "no rank is up at this moment\n"
