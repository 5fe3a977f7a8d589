"""Simulated runs: what each kind of failure comes to, that their time adds up, and that a seed determines them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zerofleet.cluster.simulation import costs
from zerofleet.cluster.simulation.costs import Costs
from zerofleet.cluster.simulation.failures import FailureRates, Kind
from zerofleet.cluster.simulation.findings import simulate
from zerofleet.cluster.simulation.run import SimulatedRun
from zerofleet.cluster.simulation.scenario import Scenario
from zerofleet.trainer.sizing.model import ModelSizes, sizes_of

SMALL: ModelSizes | None = sizes_of({"model_type": "llama", "vocab_size": 32_000}, 32_000)


def scenario(kind: Kind, per_day: float = 24.0, **more) -> Scenario:
    """Eight nodes of four GPUs for half a day, to which one thing happens again and again."""
    assert SMALL is not None
    rates = FailureRates("a test", per_day / 32, {kind: 1.0})
    fields = {"zero_stage": 3, "gpus": 32, "ranks_per_node": 4, "days": 0.5, "seed": 3, "spares": 4, "rates": rates}
    return Scenario(SMALL, **{**fields, **more})


@pytest.fixture
def ran(tmp_path):
    def run(of: Scenario) -> SimulatedRun:
        simulated = SimulatedRun(of, tmp_path)
        simulated.ledger = simulated.run()
        return simulated

    return run


def verdicts(run: SimulatedRun) -> set[str]:
    return {event.data["class"] for event in run.events if event.kind == "verdict"}


def test_a_rank_that_dies_comes_back_from_its_own_nodes_memory(ran):
    run = ran(scenario("rank"))
    assert run.failures["rank"] > 5 and run.tiers == {"own memory": run.failures["rank"]}
    assert 0 < len(run.ledger.history.lost) <= 12 * run.failures["rank"], (
        "what may be spent on snapshots buys one in twelve steps"
    )


def test_a_lost_node_is_replaced_and_its_state_comes_from_its_buddy(ran):
    run = ran(scenario("node", per_day=8.0, spares=20))
    assert run.tiers["buddy"] == run.failures["node"] > 0 and verdicts(run) == {"node"}
    assert all(record.world_size == 32 for record in run.attempts)


def test_a_lost_rack_takes_a_node_and_its_buddy_unless_racks_are_known(ran, tmp_path):
    """Without labels a node's buddy is its neighbour."""
    unknown, known = (
        simulate(scenario("rack", per_day=6.0, seed=5, knows_racks=is_known)) for is_known in (False, True)
    )
    assert unknown["simulated"]["restarts"]["storage"] > 0
    assert set(known["simulated"]["restarts"]) == {"buddy"}


def test_a_silent_rank_is_noticed_by_the_limits_that_were_learned(ran):
    run = ran(scenario("hang", per_day=8.0))
    assert run.failures["hang"] > 0 and verdicts(run) == {"hang"} and set(run.tiers) == {"own memory"}
    noticed_s = run.ledger.labels["detect"] / run.failures["hang"]
    assert 0 < noticed_s < 60, "far below cluster.stall_timeout_s: three steps"


def test_without_spares_it_shrinks_and_grows_when_the_node_is_repaired(ran):
    costs = replace(Costs(), repair_s=1800.0)
    run = ran(scenario("node", per_day=6.0, spares=0, costs=costs))
    sizes = [record.world_size for record in run.attempts]
    assert 28 in sizes and sizes[-1] == 32
    smaller = next(place for place, size in enumerate(sizes) if size == 28)
    assert 32 in sizes[smaller:], "it grew"
    assert not run.controller.state.is_final


def test_all_of_its_time_has_a_label_and_a_seed_determines_it():
    first, again, other = (simulate(scenario("rank", per_day=48.0, days=0.1, seed=seed)) for seed in (1, 1, 2))
    assert first["simulated"] == again["simulated"] != other["simulated"]
    assert sum(first["simulated"]["shares"].values()) == pytest.approx(1.0, abs=1e-6)
    assert 0.8 < first["simulated"]["goodput"] < 1.0 and first["is_simulated"]


def test_a_driver_that_looks_too_long_at_storage_never_starts_an_attempt(monkeypatch):
    """cluster.start_timeout_s is over before the ranks are forked: the run ends after cluster.max_failures."""
    monkeypatch.setattr(costs, "FILES_AT_A_TIME", 1)
    slow = replace(Costs(), request_s=20.0)
    found = simulate(scenario("rank", costs=slow))["simulated"]
    assert found["state"] == "FAILED" and "the first step was not done within cluster.start_timeout_s" in found["why"]
