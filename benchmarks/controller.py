"""The controller with as many ranks as a large cluster has. Simulated: no rank runs, a group in this process says what they would.

    python -m zerofleet.benchmarks.controller --output benchmarks/results/DATE-controller.json

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
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from zerofleet.benchmarks.environment import fingerprint
from zerofleet.cluster.attempt import Stage
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.controller import Controller
from zerofleet.cluster.group import Placement
from zerofleet.cluster.hooks import Hooks, Origin
from zerofleet.cluster.placement import Ask, NodeResources, plan
from zerofleet.cluster.policy.buddies import plan_buddies
from zerofleet.cluster.policy.stragglers import WINDOW_STEPS
from zerofleet.cluster.spec import JobSpec, SnapshotInfo
from zerofleet.cluster.stacks import RankStack
from zerofleet.cluster.state import State
from zerofleet.trainer.checkpoint.select import Selection
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.events import Event
from zerofleet.trainer.recorder import Recorder
from zerofleet.trainer.run_folder import RunFolder

RANKS_PER_NODE = 8
NUM_POLLS = 4 * WINDOW_STEPS
STEP_S = 1.0
BARS_S = {"poll": 1.0, "verdict": 1.0, "plan": 5.0}
STACK = 'Thread 0x1 (most recent call first):\n  File "distributed_c10d.py", line 100 in all_reduce\n  File "loop.py", line 9 in train'
BUSY_STACK = (
    'Thread 0x1 (most recent call first):\n  File "model.py", line 7 in forward\n  File "loop.py", line 9 in train'
)


class SimulatedGroup:
    """Ranks without processes. `batch` is what the next poll hears, pickled as one list of events per node."""

    def __init__(self, num_ranks: int) -> None:
        self.world_size = num_ranks
        self.batch: list[bytes] = []
        self.unpickle_s = 0.0
        """Of the newest poll."""
        self.on_stacks: dict[int, RankStack] = {}

    def say(self, events: list[Event]) -> None:
        nodes = range(0, len(events), RANKS_PER_NODE)
        self.batch = [pickle.dumps(events[node : node + RANKS_PER_NODE]) for node in nodes]

    def poll(self, timeout_s: float) -> list[Event]:
        began = time.perf_counter()
        events = [event for node in self.batch for event in pickle.loads(node)]
        self.unpickle_s, self.batch = time.perf_counter() - began, []
        return events

    def place(self, *_: Any, **__: Any) -> Placement:
        return Placement()

    def start(self, *_: Any, **__: Any) -> None:
        pass

    def control(self, *_: Any) -> None:
        pass

    def kill(self) -> list[Event]:
        return []

    def snapshots(self) -> list[SnapshotInfo]:
        return []

    def stacks(self) -> dict[int, RankStack]:
        return self.on_stacks

    def persist(self, *_: Any) -> None:
        pass

    def replicated(self, *_: Any, **__: Any) -> None:
        pass

    def close(self, *_: Any, **__: Any) -> None:
        pass


class Simulation:
    """One run whose ranks have begun to train. `now` is its clock, in seconds; by `clock` it is timed."""

    def __init__(self, num_ranks: int, folder: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.num_ranks, self.now, self.step_number = num_ranks, 1000.0, 0
        self.group = SimulatedGroup(num_ranks)
        run = RunFolder(str(folder), "simulated")
        self.recorder = Recorder(run, 1, _config(folder))
        hooks = Hooks(
            prepare=lambda wait_s: JobSpec(run="simulated", config_json="{}", cache_path=""),
            select=lambda excluded, infos: Selection(None, (), 0),
            claim=self._claim,
            written=lambda event: None,
            outcomes=list,
            emit=self._emit,
            requests=list,
        )
        cluster = ClusterConfig(nodes=num_ranks // RANKS_PER_NODE, ranks_per_node=RANKS_PER_NODE, max_failures=100)
        self.controller = Controller(self.group, hooks, cluster, stages=(Stage.TRAIN,))
        self.attempt = 0
        self.verdicts: list[str] = []
        self.reach(State.STARTING)
        self.hear("phase", phase="init", node="node")
        self.train()

    def _claim(self, attempt: int, start: Origin | None) -> None:
        self.attempt = attempt

    def _emit(self, event: Event) -> None:
        self.recorder.on_event(event)
        if event.kind == "verdict":
            self.verdicts.append(event.data["sentence"])

    def event(self, kind: str, rank: int, phase: str = "step", duration_s: float = 0.0, **data: Any) -> Event:
        return Event(kind, self.attempt, rank, self.step_number, phase, self.now - duration_s, duration_s, data)

    def hear(self, kind: str, **fields: Any) -> float:
        """Every rank says so; the seconds in which the controller takes it in, unpickling left out."""
        self.group.say([self.event(kind, rank, **fields) for rank in range(self.num_ranks)])
        return self.step() - self.group.unpickle_s

    def train(self) -> float:
        """Every rank ends a step."""
        self.step_number += 1
        self.now += STEP_S
        return self.hear("phase", duration_s=STEP_S, own_s=0.5)

    def step(self) -> float:
        began = self._clock()
        self.controller.step(self.now)
        return self._clock() - began

    def reach(self, state: State) -> None:
        while self.controller.state != state:
            assert not self.controller.state.is_final, self.controller.why
            self.step()

    def all_exit(self) -> list[Event]:
        return [self._exit(rank, signal=None, code=1) for rank in range(self.num_ranks)]

    def one_fails(self) -> list[Event]:
        """The cause is heard last."""
        echo: dict[str, Any] = {
            "type": "DistBackendError",
            "message": "Connection closed by peer",
            "frames": [],
            "user": False,
        }
        echoes = [self.event("error", rank, traceback="", **echo) for rank in range(1, self.num_ranks)]
        return [*echoes, self._exit(0, signal=9, code=None)]

    def _exit(self, rank: int, **data: Any) -> Event:
        more: dict[str, Any] = {
            "killed": False,
            "state_before": "",
            "oom_kills": 0,
            "memory_bytes": 2**30,
            "node": "node",
            "pid": 1,
        }
        return self.event("exit", rank, "end", **more, **data)

    def verdict_s(self, events: list[Event]) -> float:
        """The attempt ends by these events; the seconds of the judging step. The next attempt trains."""
        self.group.say(events)
        while self.controller.state != State.RECOVERING:
            self.now += 0.5
            self.step()
        seconds = self.step()
        self.reach(State.STARTING)
        self.train()
        self.reach(State.RUNNING)
        return seconds

    def hang(self) -> None:
        """Nobody says anything any more; rank 7 computes, the others wait."""
        waits, computes = RankStack("S", STACK, True), RankStack("R", BUSY_STACK, False)
        self.group.on_stacks = dict.fromkeys(range(self.num_ranks), waits) | {7: computes}


def _config(folder: Path) -> TrainConfig:
    """Of a run that does not run: only where it keeps its records matters."""
    sections = {
        "run": {"name": "simulated", "storage": str(folder)},
        "model": {"config": {"model_type": "llama"}},
        "data": {"files": ["none"], "sequence_length": 8},
        "train": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
    }
    return TrainConfig.model_validate(sections)


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


def spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "most": max(seconds), "count": len(seconds)}


def against_bars(figures: dict[str, Any], plans: dict[str, Any]) -> list[dict[str, Any]]:
    """Each figure's worst case against its bar."""
    slowest_verdict = max(verdict["most"] for verdict in figures["verdict_s"].values())
    worst = {
        "poll": figures["poll_s"]["most"] + figures["unpickle_s"]["most"],
        "verdict": slowest_verdict,
        "plan": plans["placement"]["most"] + plans["buddies"]["most"],
    }
    return [{"figure": n, "worst_s": s, "bar_s": BARS_S[n], "is_met": s <= BARS_S[n]} for n, s in worst.items()]


def main() -> None:
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


if __name__ == "__main__":
    main()
