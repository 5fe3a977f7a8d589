"""Cutting an export into weight files."""

from __future__ import annotations

from zerofleet.trainer.checkpoint.export import plan_shards


def test_shards_stay_under_the_limit_and_a_larger_tensor_stands_alone():
    sizes = {"a": 4, "b": 5, "c": 3, "d": 30, "e": 1}
    assert plan_shards(sizes, 10) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert plan_shards(sizes, 100) == [list(sizes)]
