"""The batch rule, at every size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerofleet.trainer.batch import BatchPlan, block_seed, module_seed

sizes = st.integers(min_value=1, max_value=200)


@given(sizes, st.integers(1, 40), st.integers(1, 40))
def test_every_sequence_is_dealt_exactly_once(global_batch_size, micro_batch_size, world_size):
    plan = BatchPlan.of(global_batch_size, micro_batch_size, world_size)
    dealt = [slot for rank in range(world_size) for block in plan.blocks_of(rank) for slot in plan.slots_of(block)]
    assert sorted(dealt) == list(range(global_batch_size))


@given(sizes, st.integers(1, 40), st.integers(1, 40))
def test_ranks_run_the_same_number_of_micro_steps_and_the_counts_add_up(
    global_batch_size, micro_batch_size, world_size
):
    plan = BatchPlan.of(global_batch_size, micro_batch_size, world_size)
    assert {len(plan.blocks_of(rank)) for rank in range(world_size)} == {plan.gradient_accumulation_steps}
    rows = plan.gradient_accumulation_steps * world_size * micro_batch_size
    spare = plan.num_surplus_blocks * micro_batch_size + plan.num_padded_sequences
    assert rows - spare == global_batch_size
    assert 0 <= plan.num_surplus_blocks < world_size and 0 <= plan.num_padded_sequences < micro_batch_size


def test_the_arithmetic_is_said():
    text = BatchPlan.of(13, 2, 3).describe(sequence_length=32)
    assert "13 sequences x 32 tokens = 416 tokens" in text
    assert "7 blocks of 2 over 3 ranks = 3 micro-steps" in text
    assert "1 padded sequences and 2 surplus blocks" in text and "27.8%" in text


def test_the_same_blocks_go_to_any_number_of_ranks():
    whole = {block: BatchPlan.of(100, 8, 1).slots_of(block) for block in range(13)}
    for world_size in (2, 3, 7, 64):
        plan = BatchPlan.of(100, 8, world_size)
        assert {
            b: plan.slots_of(b) for rank in range(world_size) for b in plan.blocks_of(rank) if plan.slots_of(b)
        } == whole


@pytest.mark.parametrize("change", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_seeds_differ_in_every_argument(change):
    assert block_seed(5, 6, 7) != block_seed(*(a + b for a, b in zip((5, 6, 7), change, strict=True)))
    assert block_seed(5, 6, 7) == block_seed(5, 6, 7)
    assert 0 <= block_seed(5, 6, 7) < 2**63
    assert module_seed(0, "a") != module_seed(0, "b") != module_seed(1, "b")
