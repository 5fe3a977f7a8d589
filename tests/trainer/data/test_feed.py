"""A block is what the index says, padded with sequences that no loss sees."""

from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.data.corpora import prepared, write_corpus
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.data.feed import Feed, read_block
from zerofleet.trainer.data.sequences import IGNORED_LABEL


@pytest.fixture(scope="module", params=["concatenate", "best_fit"])
def cache(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return prepared(write_corpus(folder / "corpus", num_words=20), folder / "cache", packing=request.param)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_together_are_fed_what_the_index_says(cache, world_size):
    feed = Feed(cache.train, BatchPlan.of(7, 2, world_size), 3, "main", [])
    reference = Feed(cache.train, BatchPlan.of(7, 2, 1), 3, "main", [])
    for index in (0, 1, 5):
        step = feed.step_plan(index)
        blocks = [block for rank in range(world_size) for block in feed.micro_batches(step, rank)]
        assert sum(block.num_sequences for block in blocks) == 7
        assert sum(block.num_tokens for block in blocks) == step.num_tokens
        assert sum(int((block.labels != IGNORED_LABEL).sum()) for block in blocks) == step.num_tokens
        whole = reference.micro_batches(reference.step_plan(index), 0)
        assert sum(block.digest for block in blocks) % 2**64 == sum(block.digest for block in whole) % 2**64


def test_the_mask_adds_position_ids_and_changes_nothing_else(cache):
    samples = np.array([2, 0])
    plain, masked = (read_block(cache.train, 4, samples, 3, document_mask) for document_mask in (False, True))
    assert list(plain.inputs) == ["input_ids"] and list(masked.inputs) == ["input_ids", "position_ids"]
    assert np.array_equal(plain.inputs["input_ids"], masked.inputs["input_ids"])
    assert np.array_equal(plain.labels, masked.labels)
    assert (plain.digest, plain.num_tokens, plain.num_sequences) == (masked.digest, masked.num_tokens, 2)
    position_ids = masked.inputs["position_ids"]
    assert position_ids.shape == masked.labels.shape and position_ids.dtype == np.int64
    assert np.array_equal(position_ids[:2], cache.train.position_ids(samples))
    assert (plain.labels[2] == IGNORED_LABEL).all() and position_ids[2].tolist() == list(range(32))


def test_held_out_sequences_go_the_same_way(cache):
    plan, store = BatchPlan.of(4, 2, 2), cache.heldout
    for document_mask in (False, True):
        feed = Feed(cache.train, plan, 3, "main", [], document_mask)
        blocks = [block for rank in range(2) for block in feed.heldout_blocks(store, 0, rank)]
        assert sum(block.num_sequences for block in blocks) == store.num_sequences > 1
        assert sum(block.num_tokens for block in blocks) == store.num_targets(np.arange(store.num_sequences)).sum()
        assert all(("position_ids" in block.inputs) == document_mask for block in blocks)


def test_a_wrong_sample_that_cannot_be_is_no_silent_pass(cache):
    """A rank that is fed padding only has no sample that could be exchanged."""
    feed = Feed(cache.train, BatchPlan.of(2, 2, 2), 3, "main", [])
    wrong = feed.with_wrong_sample(feed.step_plan(0), 0)
    assert (wrong.samples != feed.step_plan(0).samples).sum() == 1
    with pytest.raises(LookupError, match="of rank 1's"):
        feed.with_wrong_sample(feed.step_plan(0), 1)
