"""Causes that were planted in real training are named first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.cli import Cli
from tests.support.paging import paging, why_not
from tests.support.ranks import Plan, job, run_attempt
from zerofleet.benchmarks.fault_places import OverHosts, why_not_over
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.faults import Fault
from zerofleet.cluster.goodput.account import Account, Cause
from zerofleet.cluster.goodput.causes import explain
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.accounts import read_history
from zerofleet.launch.chaos.trial import Trial, run_trial
from zerofleet.launch.config import load_job
from zerofleet.launch.explanation import Explanation
from zerofleet.launch.run_view import RunView
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.rank_sums import RankSums
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]


def causes(config: TrainConfig, cache, plan: Plan = Plan(), timeout_s: float = 90.0) -> list[Cause]:
    """Of a run of two ranks; what a driver would have summed up of them is summed up here."""
    outcome = run_attempt(config, cache, 2, plan, timeout_s)
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


def test_data_that_comes_late(tmp_path, tiny_corpus, tiny_cache):
    changes = {"train__steps": 20, "train__micro_batch_size": 4, "checkpoint__interval_steps": 0}
    found = causes(job(tmp_path, tiny_corpus, **changes), tiny_cache, Plan(slow_data_s=0.1))
    assert found[0].name == "data wait", found
    assert found[0].cost_s == pytest.approx(2.0, rel=0.3), "20 steps of one micro-batch"


def test_a_tiny_micro_batch(tmp_path, tiny_corpus, tiny_cache):
    changes = {"train__steps": 10, "train__micro_batch_size": 1, "train__global_batch_size": 64}
    found = causes(job(tmp_path, tiny_corpus, **changes, checkpoint__interval_steps=0), tiny_cache)
    assert found[0].name == "tiny micro-batch" and "32 micro-steps of 32 tokens" in found[0].evidence, found
    assert found[0].setting == "train.micro_batch_size=32"


@pytest.mark.further  # compilations: a minute and more
@pytest.mark.timeout(500)
def test_a_shape_that_changes_in_every_step(tmp_path, tiny_corpus, tiny_cache):
    """torch gives up after eight compilations of a frame, so that the steps are few."""
    changes = {"train__steps": 8, "train__micro_batch_size": 4, "train__compile": True, "checkpoint__interval_steps": 0}
    found = causes(job(tmp_path, tiny_corpus, **changes), tiny_cache, Plan(changing_shapes=True), timeout_s=400)
    assert found[0].name == "compile every step" and "of 5 steps" in found[0].evidence, found


def test_storage_that_is_slow(tmp_path, tiny_corpus, tiny_cache):
    changes = {"train__steps": 6, "train__micro_batch_size": 4, "checkpoint__interval_steps": 2}
    found = causes(job(tmp_path, tiny_corpus, **changes), tiny_cache, Plan(slow_writes_s=1.5))
    assert found[0].name == "slow storage" and "to become durable" in found[0].evidence, found


def told(trial: Trial) -> tuple[Cause, ...]:
    """As `zerofleet explain` says of a run with a driver."""
    return Explanation.of(RunView.of(trial.run)).causes


@pytest.mark.parametrize(
    ("fault", "state", "name", "part"),
    [
        (Fault("freeze", 1, 4), "FINISHED", "hang", "1 x"),
        (Fault("raise", 1, 4, attempt=None), "FAILED", "user bug", "InjectedFault"),
    ],
)
def test_what_ends_attempts(tmp_path, tiny_corpus, tiny_cache, fault, state, name, part):
    cli = Cli(tmp_path, tiny_corpus)
    trial = run_trial(load_job(cli.recipe, ["run.name=a"]), cli.recipe, (fault,), 120.0)
    found = told(trial)
    assert trial.record.final_state == state and found[0].name == name and part in found[0].evidence, found
    assert found[0].is_end == (state == "FAILED")


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_host_that_waits_for_memory(tmp_path, tiny_corpus, tiny_cache):
    changes = {"train__steps": 60, "train__micro_batch_size": 4, "checkpoint__interval_steps": 0}
    with paging():
        found = causes(job(tmp_path, tiny_corpus, **changes), tiny_cache)
    assert found[0].name == "swap" and "by the kernel's account" in found[0].evidence, found


@pytest.mark.further
@pytest.mark.skipif(bool(why_not_over("hosts")), reason=why_not_over("hosts"))
def test_a_node_whose_ranks_die_again_and_again(tmp_path_factory, tmp_path, tiny_corpus, tiny_cache):
    """Of two hosts; each time there was progress, so that nobody leaves it out."""
    cli = Cli(tmp_path, tiny_corpus)
    kills = tuple(Fault("kill", 1, step, attempt=attempt) for attempt, step in enumerate((4, 7, 10), 1))
    place = OverHosts(tmp_path_factory.getbasetemp())
    try:
        # One micro-step a step: that two are too small would be true as well, and cost more than three restarts on a busy machine.
        settings = ["run.name=a", "train.steps=12", "train.micro_batch_size=4"]
        trial = place.run(load_job(cli.recipe, settings), cli.recipe, kills, 120.0)
    finally:
        place.close()
    assert trial.record.final_state == "FINISHED" and len(trial.strikes) == 3
    found = told(trial)
    assert found[0].name == "one bad node", found
    assert "host-1 was at fault in 3 of 3 failures" in found[0].evidence, found
