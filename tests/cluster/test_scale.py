"""Ten times the ranks, or nodes, cost about ten times as much: by processor time, and as a ratio, since machines differ.

benchmarks/controller.py has the seconds.
"""

from __future__ import annotations

import time

import pytest

from tests.support.costs import costs_at_most, processor_time
from zerofleet.benchmarks.simulation import Simulation
from zerofleet.cluster.placement import Ask, NodeResources, plan
from zerofleet.cluster.policy.buddies import plan_buddies
from zerofleet.cluster.policy.stragglers import WINDOW_STEPS
from zerofleet.cluster.state import State

MOST = 25.0
"""Times as much: 10 and what caches and small numbers add. A loop within a loop shows as about 100."""


@pytest.fixture
def simulated(tmp_path):
    """A run in state RUNNING, of so many ranks."""

    def make(num_ranks: int) -> Simulation:
        simulation = Simulation(num_ranks, tmp_path / str(num_ranks), time.process_time)
        simulation.reach(State.RUNNING)
        return simulation

    return make


def test_polls(simulated):
    """A straggler window, its end included."""

    def polls(simulation: Simulation) -> None:
        for _ in range(WINDOW_STEPS):
            simulation.train()

    small, large = simulated(96), simulated(960)
    assert costs_at_most(MOST, processor_time(lambda: polls(large)), processor_time(lambda: polls(small)))


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("all_exit", "rank 0 on node node, in phase step after step 2, ended with exit code 1"),
        ("one_fails", "rank 0 on node node, in phase step after step 2, was killed (SIGKILL)"),
        ("hang", "rank 7 on node node, in phase step after step 2, gave no sign of life"),
    ],
)
def test_verdicts(simulated, end, sentence):
    simulations = [simulated(num_ranks) for num_ranks in (200, 2000)]

    def judged(simulation: Simulation) -> float:
        return simulation.verdict_s(getattr(simulation, end)() or [])

    for simulation in simulations:
        simulation.train()
    small, large = simulations
    assert costs_at_most(MOST, lambda: judged(large), lambda: judged(small))
    for simulation in simulations:
        assert simulation.verdicts[0].startswith(sentence)
        assert simulation.attempt == 1 + len(simulation.verdicts)


def nodes(count: int) -> list[NodeResources]:
    return [NodeResources(f"id{n}", f"node-{n:05d}", 96, 8, 96, n % 9) for n in range(count)]


@pytest.mark.parametrize("wanted", [100, 1000], ids=["enough", "too few"])
def test_placements(wanted):
    small, large = nodes(1200), nodes(12_000)
    assert len(plan(Ask(10 * wanted, 8, 64, 8), large).nodes) == (1000 if wanted == 100 else 1333)
    much = processor_time(lambda: plan(Ask(10 * wanted, 8, 64, 8), large))
    assert costs_at_most(MOST, much, processor_time(lambda: plan(Ask(wanted, 8, 64, 8), small)))


@pytest.mark.parametrize("nodes_per_rack", [1, 8, 500])
def test_buddies(nodes_per_rack):
    def racks(count: int) -> dict[str, str | None]:
        return {f"node-{n}": f"rack-{n // nodes_per_rack}" for n in range(count)}

    small, large = racks(1250), racks(12_500)
    much = processor_time(lambda: plan_buddies(large))
    assert costs_at_most(MOST, much, processor_time(lambda: plan_buddies(small)))
