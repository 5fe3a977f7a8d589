"""What the probe is made of, and who is told that it gave another loss."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.support.checkpoints import draft
from zerofleet.trainer.checkpoint.format import Manifest, _sealed
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.sequences import SequenceStore
from zerofleet.trainer.errors import UserError, WrongProbe
from zerofleet.trainer.probe import PROBE_TOKENS, TOLERANCES, judge_probe, other_code, probe_batch


def manifest(precision: str, probe_loss: float) -> Manifest:
    fields = {
        **vars(draft(7)),
        "precision": precision,
        "probe_loss": probe_loss,
        "versions": {"torch": "1", "python": "3"},
    }
    return Manifest(7, 1, "main", 2, digests={}, rank_files=[], created_at=0.0, **fields)


def test_the_probe_is_the_beginning_of_one_sequence_and_always_the_same(tiny_cache):
    cache = DataCache.open(tiny_cache.path)
    batch = probe_batch(cache, document_mask=True)
    length = min(PROBE_TOKENS, cache.heldout.sequence_length)
    assert {name: values.shape for name, values in batch.inputs.items()} == {
        "input_ids": (1, length),
        "position_ids": (1, length),
    }
    input_ids, labels = cache.heldout.read(np.zeros(1, dtype=np.int64))
    assert (batch.inputs["input_ids"] == input_ids[:, :length]).all() and (batch.labels == labels[:, :length]).all()
    assert batch.num_tokens == (batch.labels >= 0).sum() > 0


def test_it_is_as_long_as_that_of_the_checkpoint_that_it_is_compared_with(tiny_cache):
    cache = DataCache.open(tiny_cache.path)
    assert probe_batch(cache, False, 8).inputs["input_ids"].shape == (1, 8)
    body = json.loads(replace(manifest("fp32", 5.0), probe_tokens=8).to_bytes())
    del body["probe_tokens"], body["hash"]
    assert Manifest.from_bytes(_sealed(body)).probe_tokens == 64, "of one that was written before"


def test_what_other_software_left_in_memory_is_told():
    old = manifest("fp32", 5.0)
    assert other_code(old, {"torch": "1", "python": "3"}) == {}
    assert "other software made it (torch 1, now 2)" in other_code(old, {"torch": "2", "python": "3"})["message"]


def test_without_held_out_sequences_it_is_of_the_training_set(tiny_cache):
    cache = DataCache.open(tiny_cache.path)
    none_held_out = replace(
        cache, heldout=SequenceStore(np.zeros(0, np.uint16), np.zeros(0, np.int64), cache.train.sequence_length)
    )
    assert (
        probe_batch(none_held_out, False).inputs["input_ids"]
        == cache.train.read(np.zeros(1, dtype=np.int64))[0][:, :PROBE_TOKENS]
    ).all()


@pytest.mark.parametrize(("precision", "tolerance"), TOLERANCES.items())
def test_what_another_kernel_would_give_is_taken(precision, tolerance):
    judge_probe(manifest(precision, 5.0), [5.0, 5.0 * (1 + 0.9 * tolerance), 5.0 * (1 - 0.9 * tolerance)], {})


@pytest.mark.parametrize("odd", [5.01, 4.99, math.nan, math.inf])
def test_the_odd_rank_is_named(odd):
    with pytest.raises(
        WrongProbe, match="rank 1 makes a probe loss of .* of the weights of step 7, which gave 5 "
    ) as refused:
        judge_probe(manifest("fp32", 5.0), [5.0, odd, 5.0], {})
    assert refused.value.ranks == [1]


def test_when_all_are_odd_the_code_is_another():
    with pytest.raises(UserError, match=r"probe loss is 5.01 where it was 5 .*\(torch 1, now 2\)"):
        judge_probe(manifest("fp32", 5.0), [5.01, 5.01], {"torch": "2", "python": "3"})
    with pytest.raises(UserError, match="the versions are the same"):
        judge_probe(manifest("bf16", 5.0), [5.03], {"torch": "1", "python": "3"})
