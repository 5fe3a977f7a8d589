"""How many nodes a run has use for."""

from __future__ import annotations

from zerofleet.cluster.policy.sizing import Sizes
from zerofleet.cluster.sizer import Sizer


def test_halved_micro_batches_give_more_nodes_something_to_do():
    """Two blocks of four are one micro-step of two ranks; four blocks of two are two, which another node would halve."""
    sizer = Sizer(Sizes(1, 3, 2, 8, 4, 30.0, 120.0))
    sizer.launched(1, 0.0)
    assert not sizer.can_grow
    sizer.launched(1, 0.0, micro_batch_size=2)
    assert sizer.can_grow
    sizer.launched(1, 0.0)
    assert sizer.can_grow, "as before"
