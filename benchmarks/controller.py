"""The controller with as many ranks as a large cluster has. Simulated: no rank runs, a group in this process says what they would.

    zerofleet bench controller --output benchmarks/results/DATE-controller.json

- poll: one `Controller.step` that takes in a step's event of every rank, the heartbeat and the straggler policy included. Every
  16th also ends a straggler window, every one looks for silent ranks. What the ranks' node agents send is pickled, one list of
  events per node, as Ray does; unpickling it is timed by itself.
- verdict: the `Controller.step` that judges an attempt, kills it and starts the next. Three ends: every rank exits at once; one rank
  fails and all others lose their connection to it; every rank falls silent in a collective but one, with the stacks of all.
- plans: which 1,250 of 12,000 nodes to take, what is missing when too few are free, and the buddies of 1,250 nodes in racks of 8,
  afresh and after the loss of a rack.

The run's records are written for real, to a temporary folder. Not in it: the network, Ray, and the work of agents and ranks.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from zerofleet.benchmarks.simulation import RANKS_PER_NODE, Simulation
from zerofleet.cluster.placement import Ask, NodeResources, plan
from zerofleet.cluster.policy.buddies import plan_buddies
from zerofleet.cluster.policy.stragglers import WINDOW_STEPS
from zerofleet.cluster.state import State
from zerofleet.launch.environment import fingerprint

NUM_POLLS = 4 * WINDOW_STEPS
BARS_S = {"poll": 1.0, "verdict": 1.0, "plan": 5.0}


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def controller_figures(num_ranks: int, repetitions: int) -> dict[str, Any]:
    """Seconds of polls and verdicts, and the memory of the process that the simulation adds, in bytes."""
    process = psutil.Process()
    gc.collect()
    before_bytes = process.memory_info().rss
    with tempfile.TemporaryDirectory(prefix="zerofleet-controller-") as folder:
        simulation = Simulation(num_ranks, Path(folder))
        simulation.reach(State.RUNNING)
        polls, unpickling = [], []
        for _ in range(NUM_POLLS):
            polls.append(simulation.train())
            unpickling.append(simulation.group.unpickle_s)
        memory_bytes = process.memory_info().rss - before_bytes
        verdicts: dict[str, list[float]] = {"all exit": [], "one fails": [], "all silent": []}
        for _ in range(repetitions):
            verdicts["all exit"].append(simulation.verdict_s(simulation.all_exit()))
            verdicts["one fails"].append(simulation.verdict_s(simulation.one_fails()))
            simulation.hang()
            verdicts["all silent"].append(simulation.verdict_s([]))
        simulation.recorder.close()
    return {
        "poll_s": spread(polls),
        "unpickle_s": spread(unpickling),
        "verdict_s": {name: spread(seconds) for name, seconds in verdicts.items()},
        "verdicts": simulation.verdicts[:3],
        "memory_bytes": memory_bytes,
    }


def plan_figures(repetitions: int) -> dict[str, Any]:
    """Seconds of the plans for 1,250 nodes of 8 GPUs."""
    nodes = [NodeResources(f"id{n}", f"node-{n:05d}", 96, 8, 96, n % 9) for n in range(12_000)]
    ask = Ask(1250, 8, 64, 8)
    assert len(plan(ask, nodes).nodes) == 1250
    few = nodes[:9000]
    assert plan(ask, few).missing
    racks: dict[str, str | None] = {f"node-{n:04d}": f"rack-{n // 8}" for n in range(1250)}
    buddies = plan_buddies(racks)
    left = {node: rack for node, rack in racks.items() if rack != "rack-3"}
    calls: dict[str, Callable[[], Any]] = {
        "placement": lambda: plan(ask, nodes),
        "placement, too few": lambda: plan(ask, few),
        "buddies": lambda: plan_buddies(racks),
        "buddies after the loss of a rack": lambda: plan_buddies(left, buddies.keepers),
    }
    return {name: spread([timed(call) for _ in range(repetitions)]) for name, call in calls.items()}


def spread(seconds: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(seconds), "most": max(seconds), "count": len(seconds), "values": seconds}


def against_bars(figures: dict[str, Any], plans: dict[str, Any]) -> list[dict[str, Any]]:
    """Each figure's worst case against its bar."""
    slowest_verdict = max(verdict["most"] for verdict in figures["verdict_s"].values())
    worst = {
        "poll": figures["poll_s"]["most"] + figures["unpickle_s"]["most"],
        "verdict": slowest_verdict,
        "plan": plans["placement"]["most"] + plans["buddies"]["most"],
    }
    return [{"figure": n, "worst_s": s, "bar_s": BARS_S[n], "is_met": s <= BARS_S[n]} for n, s in worst.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    environment = fingerprint()
    figures = controller_figures(arguments.ranks, arguments.repetitions)
    plans = plan_figures(arguments.repetitions)
    result = {
        "benchmark": "controller",
        "is_simulated": True,
        "config": {"ranks": arguments.ranks, "ranks_per_node": RANKS_PER_NODE, "polls": NUM_POLLS},
        "bars": against_bars(figures, plans),
        "controller": figures,
        "plans_s": plans,
        "environment": environment,
    }
    print(f"simulated: {arguments.ranks:,} ranks, none of which runs")
    print(json.dumps({key: result[key] for key in ("controller", "plans_s")}, indent=1))
    for bar in against_bars(figures, plans):
        verdict = "met" if bar["is_met"] else "MISSED"
        print(f"{bar['figure']:8} {bar['worst_s']:.3f} s, at most {bar['bar_s']:g} s: {verdict}")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(bar["is_met"] for bar in against_bars(figures, plans)) else 1


if __name__ == "__main__":
    sys.exit(main())
