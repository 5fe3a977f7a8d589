"""Causes that were planted in real training are named first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.ranks import Plan, job, run_attempt
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.goodput.account import Account, Cause
from zerofleet.cluster.goodput.causes import explain
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.accounts import read_history
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.rank_sums import RankSums
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]


def causes(config: TrainConfig, cache, plan: Plan = Plan()) -> list[Cause]:
    """Of a run of two ranks; what a driver would have summed up of them is summed up here."""
    outcome = run_attempt(config, cache, 2, plan)
    assert not outcome.errors, outcome.errors
    sums = RankSums(outcome.attempt)
    for event in outcome.events:
        sums.hear(event)
    history = read_history(RunFolder(config.run.storage, config.run.name))
    known = [event for event in history.events if event.kind != "ranks"]
    told = sums.take(is_last=True)
    assert told is not None and told.data["steps"] == [config.train.steps] * 2
    ledger = Ledger.of(replace(history, events=(*known, told)))
    assert sum(ledger.labels.values()) == pytest.approx(ledger.wall_s)
    return explain(Account(ledger, config, ClusterConfig(ranks_per_node=2)))


def test_a_slow_rank(tmp_path, tiny_corpus, tiny_cache):
    changes = {"train__steps": 30, "train__micro_batch_size": 4, "checkpoint__interval_steps": 0}
    found = causes(job(tmp_path, tiny_corpus, **changes), tiny_cache, Plan(slow=(1, 0.1, "sleeps")))
    assert found[0].name == "slow rank" and "rank 1 takes" in found[0].evidence, found
    assert found[0].cost_s == pytest.approx(3.0, rel=0.25), "30 steps of 0.1 s"


def test_too_frequent_saves(tmp_path, tiny_corpus, tiny_cache):
    changes = {"train__steps": 40, "train__micro_batch_size": 4, "checkpoint__interval_steps": 1}
    found = causes(job(tmp_path, tiny_corpus, **changes), tiny_cache)
    assert found[0].name == "too frequent saves" and "one in 1" in found[0].evidence, found
    assert found[0].setting.startswith("checkpoint.interval_steps=") and found[0].saving_s > 0.8 * found[0].cost_s
