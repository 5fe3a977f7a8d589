"""kill -9 of one of two ranks to the end of the next new step, and the cold start: zerofleet, Ray Train and torchrun in turn.

    zerofleet bench recovery --rounds 7 --output benchmarks/results/DATE-recovery.json

One trial starts a system's command, waits until a step of the round's choice is finished, kills rank 1 a random moment
later, and waits for a step that nobody had finished before. A round has one trial of each system, in the order A B C, with
the same step and the same moment; a ratio compares two trials of one round. Every system trains the model, batch and
precision of peers/common.py with DeepSpeed at ZeRO-1 on two ranks, and keeps its state after every step: zerofleet in
memory, the peers on local disk. The peers' batches are random numbers made in place; zerofleet reads and prepares a text
corpus, and its cold start has that in it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerofleet.benchmarks.peers import common
from zerofleet.benchmarks.peers.systems import SYSTEMS, Zerofleet
from zerofleet.benchmarks.recovery_trial import Plan, TrialError, run_trial
from zerofleet.benchmarks.statistics import median_interval
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer import ops

KILL_STEPS = (8, 20)
"""The step that must be finished before the kill is drawn from these, both included."""
LATEST_KILL_S = 0.3
"""The kill comes up to so many seconds after that: in every phase of a step."""

FIGURES = ("recovery_s", "cold_start_s")
BARS = {("recovery_s", "ray_train"): 1 / 20, ("recovery_s", "torchrun"): 1 / 10, ("cold_start_s", "ray_train"): 0.5}
"""What the median ratio of zerofleet to a peer must not exceed."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    # For torchrun: its ranks share the rendezvous' store otherwise, find in it the addresses of the ranks before the restart,
    # and wait for those until DeepSpeed's timeout of 30 minutes (torch 2.13: two of three restarts).
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
"""Of every trial, whatever the system."""

Round = dict[str, Any]
"""`kill_step`, `delay_s`, and by system a Trial's fields, or `error`."""


def draw_plans(rounds: int, seed: int) -> list[Plan]:
    """When to kill, round by round: the same for all systems."""
    draw = random.Random(seed)
    return [Plan(draw.randint(*KILL_STEPS), draw.uniform(0, LATEST_KILL_S)) for _ in range(rounds)]


def ratios(rounds: Sequence[Round], figure: str, peer: str) -> list[float]:
    """zerofleet's seconds by the peer's, of the rounds in which both came through."""
    pairs = [(a_round[Zerofleet.name], a_round[peer]) for a_round in rounds]
    return [ours[figure] / theirs[figure] for ours, theirs in pairs if "error" not in ours and "error" not in theirs]


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Ratios with their 95 % intervals and bars, and per system medians, steps done again, failed trials."""
    compared = {}
    for figure in FIGURES:
        for peer in (name for name in SYSTEMS if name != Zerofleet.name):
            if values := ratios(rounds, figure, peer):
                low, median, high = median_interval(values)
                bar = BARS.get((figure, peer))
                compared[f"{figure} over {peer}"] = {
                    "low": low,
                    "median": median,
                    "high": high,
                    "confidence": 0.95,
                    "rounds": len(values),
                    "bar": bar,
                    "met": None if bar is None else median <= bar,
                }
    return {"ratios": compared, "systems": {name: _of_system([r[name] for r in rounds]) for name in SYSTEMS}}


def _of_system(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    done = [trial for trial in trials if "error" not in trial]
    medians = {f"median_{figure}": statistics.median(t[figure] for t in done) for figure in FIGURES if done}
    return {
        **medians,
        "repeated_steps": [trial["repeated_steps"] for trial in done],
        "failed_trials": len(trials) - len(done),
    }


def run_round(plan: Plan) -> Round:
    """One trial of each system, in order. A trial that fails is recorded with its reason, and its folder is kept."""
    outcome: Round = {"kill_step": plan.kill_step, "delay_s": plan.delay_s}
    for name, system in SYSTEMS.items():
        folder = Path(tempfile.mkdtemp(prefix="zfb-", dir="/tmp"))  # short: sockets lie in it
        try:
            outcome[name] = run_trial(system, folder, plan).to_dict()
            shutil.rmtree(folder)
        except TrialError as error:
            outcome[name] = {"error": f"{error}\nits folder: {folder}"}
        print(f"{name}: {json.dumps(outcome[name])}", flush=True)
    return outcome


def result(rounds: Sequence[Round], seed: int, load_before: tuple[float, float, float]) -> dict[str, Any]:
    """The benchmark's record: summary, every round, what was trained on what."""
    return {
        "benchmark": "recovery",
        "config": {
            "model": common.MODEL,
            "sequence_length": common.SEQUENCE_LENGTH,
            "global_batch_size": common.GLOBAL_BATCH_SIZE,
            "world_size": common.WORLD_SIZE,
            "zero_stage": 1,
            "precision": "fp32",
            "kill_signal": signal.Signals.SIGKILL.name,
            "killed_rank": 1,
            "seed": seed,
            "order": list(SYSTEMS),
        },
        **summary(rounds),
        "rounds": list(rounds),
        "environment": {**fingerprint(), "load_average_before": load_before},
    }


def prepare_environment() -> None:
    """What all trials inherit: DeepSpeed's ops as they were built during installation, bytecode that is kept.

    The peers would compile the ops at their first start otherwise. Raises SystemExit when they are not there.
    """
    if not ops.is_built(ops.COMMUNICATION_OP):
        raise SystemExit(f"{ops.COMMUNICATION_OP} is not built: run `python -m zerofleet.trainer.ops` first")
    ops.make_loadable()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.update(ENVIRONMENT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that a trial that runs is ended
    prepare_environment()
    load_before, rounds = os.getloadavg(), []
    for plan in draw_plans(arguments.rounds, arguments.seed):
        rounds.append(run_round(plan))
        record = result(rounds, arguments.seed, load_before)
        arguments.output.write_text(
            json.dumps(record, indent=1) + "\n"
        )  # after each: hours must not be lost to the last
    print(json.dumps({key: record[key] for key in ("ratios", "systems")}, indent=1))
    sys.exit(any(system["failed_trials"] for system in record["systems"].values()))


if __name__ == "__main__":
    main()
