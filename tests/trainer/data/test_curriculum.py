"""Curriculum by length: from short to long in every epoch, every sample once, any position alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.simulated_run import SimulatedRun
from tests.trainer.data.corpora import document, prepared
from zerofleet.launch.config import load_job
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.data.audit import audit
from zerofleet.trainer.data.curriculum import ranks_by_length, staged_ranks
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.ledger_table import LedgerTable
from zerofleet.trainer.data.mixture import Schedule
from zerofleet.trainer.errors import UserError


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(2, 12), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_every_stage_holds_its_ranks_once_in_every_epoch(num_samples, num_stages, seed, epoch):
    positions = np.arange(epoch * num_samples, (epoch + 1) * num_samples)
    ranks = staged_ranks(positions, num_samples, num_stages, seed, "a", "main")
    bounds = [stage * num_samples // num_stages for stage in range(num_stages + 1)]
    for start, stop in pairwise(bounds):
        assert sorted(ranks[start:stop]) == list(range(start, stop))
    some = np.random.default_rng(seed).permutation(positions)[:7]
    assert np.array_equal(staged_ranks(some, num_samples, num_stages, seed, "a", "main"), ranks[some - positions[0]])


def test_stages_are_shuffled_anew_by_all_that_the_order_depends_on():
    positions = np.arange(3000)

    def ranks(seed=0, source="a", silo="main"):
        return staged_ranks(positions, 1000, 4, seed, source, silo)

    first = ranks()
    assert not np.array_equal(first[:1000], first[1000:2000]), "another epoch"
    assert not np.array_equal(first[:250], first[250:500] - 250), "another stage"
    others = [ranks(seed=1), ranks(source="b"), ranks(silo="x")]
    assert all(not np.array_equal(first, other) for other in others)
    assert abs(np.corrcoef(np.arange(250), first[:250])[0, 1]) < 0.25, "shuffled, not in the order of the ranks"


def test_the_order_is_frozen():
    """A run resumes by position: when this fails, the change breaks every run with a curriculum."""
    assert staged_ranks(np.arange(18, 30), 12, 3, 7, "default", "main").tolist() == FROZEN


FROZEN = [6, 4, 8, 9, 11, 10, 3, 0, 1, 2, 4, 7]


def test_lengths_are_means_and_ties_keep_their_order():
    assert ranks_by_length(np.array([30, 8, 30, 9]), np.array([1, 4, 3, 4])).tolist() == [1, 3, 2, 0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two sources of documents of very different lengths."""
    folder = tmp_path_factory.mktemp("corpora")
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(60):
            text = document(number + 100 * (name == "b"), num_words=1 + number * number % 97)
            (folder / name / f"{number:02d}.txt").write_text(text, "utf-8")
    sources = {name: {"files": [f"{folder}/{name}/*.txt"], "weight": 1.0} for name in ("a", "b")}
    return prepared([], folder / "cache", packing="best_fit", sources=sources, sequence_length=128).train


def feed_of(store, num_stages=3) -> Feed:
    schedule = Schedule.of({"a": 1.0, "b": 1.0})
    return Feed(store, BatchPlan.of(4, 2, 2), 3, "main", (), schedule=schedule, curriculum_stages=num_stages)


def test_each_source_goes_from_short_to_long_in_each_epoch(store):
    table, start = store._sequences, 0
    lengths = table["num_tokens"] // table["num_pieces"]
    feed, order = feed_of(store), feed_of(store).samples_at(np.arange(6 * store.num_sequences))
    for size in store.source_sizes:
        mine = order[(order >= start) & (order < start + size)][: 2 * size]
        for epoch in np.split(mine, 2):
            assert sorted(epoch) == list(range(start, start + size)), "every sample once"
            stages = [lengths[epoch[k * size // 3 : (k + 1) * size // 3]] for k in range(3)]
            assert stages[0].max() <= stages[1].min() <= stages[1].max() <= stages[2].min()
            assert stages[0].mean() < 0.8 * stages[2].mean()
        assert not np.array_equal(*np.split(mine, 2)), "another epoch, another order"
        start += size
    assert not np.array_equal(order, feed_of(store, 1).samples_at(np.arange(len(order))))
    assert np.array_equal(feed.step_plan(5).samples, order[20:24])


def test_the_audit_proves_it_and_finds_a_run_without_it(store):
    run = SimulatedRun(feed_of(store)).attempt(0, 8).attempt(5, 12, 3)
    lines = LedgerTable.of(run.lines, "main")
    assert audit(lines, run.attempts, run.feed, 12, 0).is_exact
    other = audit(lines, run.attempts, feed_of(store, 1), 12, 0)
    assert not other.is_exact and other.findings


@pytest.mark.parametrize("also", ["data.packing=concatenate", "data.packing=best_fit"])
def test_only_what_knows_its_documents_lengths_has_one(tmp_path, also):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {config: {model_type: llama}}\ndata: {files: [python-stdlib]}\n"
        "train: {steps: 1, global_batch_size: 1, micro_batch_size: 1}\n"
    )
    if also == "data.packing=best_fit":
        assert load_job(recipe, ["data.curriculum_stages=4", also]).data.curriculum_stages == 4
    else:
        with pytest.raises(UserError, match=r"curriculum_stages=4 needs data\.packing=best_fit"):
            load_job(recipe, ["data.curriculum_stages=4", also])
