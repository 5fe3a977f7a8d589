"""What `zerofleet bench compare` says of two equal builds, and of one that is slower by a planted share: 40 times each, on this machine's own noise.

    zerofleet bench compare_power --output DATE-compare-power.json

A trial is a fresh process with two arms, each a real training loop of its own (`trainer/loop.py`: DeepSpeed, ledger, clipping) of the same
small Llama. They take turns step by step, in an order that is drawn for each pair, until each has trained for 5 s. A planted slowdown is busy waiting
after each step, for a share of what the step took. Both arms' seconds go to two files in the form of all results, and these to the comparison.

How many pairs that needs: steps of this size scatter by 5 to 15 % (standard deviation of the logarithm), pairs of them by 1.4 times that, and
the interval's end must lie beyond 1.5 % when the truth is 5 %. A standard error of 1.1 % does it in nine of ten: 65 pairs at 6 %, 180 at 10 %, 410
at 15 %. Hence steps of some 15 ms. A fresh process for each trial draws the memory's layout anew: within one it would favour the same arm for ever.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from zerofleet.benchmarks.comparison import compare
from zerofleet.benchmarks.peers.systems import corpus
from zerofleet.benchmarks.plan_memory import no_saves
from zerofleet.benchmarks.rank_group import Group, run_group
from zerofleet.benchmarks.record import Alternation, Build, LoadAverage, Result, Series, read_result
from zerofleet.benchmarks.recovery import prepare_environment
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.events import Control
from zerofleet.trainer.loop import Loop
from zerofleet.trainer.run_folder import RunFolder

PLANTED = {"equal": 0.0, "slower by 5 %": 0.05}
"""Share of its own step that the second arm waits, by kind of trial."""
BARS = {"equal": ("cannot tell", 0.95), "slower by 5 %": ("slower", 0.90)}
"""The verdict that is right, and the least share of the trials that must come to it."""
WARM_UP_STEPS = 10
MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
Seconds = dict[str, list[float]]


def job(root: Path, name: str) -> TrainConfig:
    """4 sequences of 64 tokens per step, on one rank."""
    return TrainConfig.model_validate(
        {
            "run": {"name": name, "storage": str(root / "runs")},
            "model": {"config": MODEL},
            "data": {
                "files": [str(root / "corpus.jsonl")],
                "tokenizer_vocab_size": 512,
                "sequence_length": 64,
                "heldout_fraction": 0.0,
                "cache": str(root / "cache"),
            },
            "train": {
                "steps": 10**6,
                "global_batch_size": 4,
                "micro_batch_size": 4,
                "precision": "fp32",
                "replica_check_interval_steps": 0,
            },
            "checkpoint": {"interval_steps": 0, "snapshot_interval_steps": 0},
        }
    )


def loop_of(group: Group, root: Path, name: str) -> Loop:
    """A training loop in a run folder of its own."""
    config = job(root, name)
    run = RunFolder(config.run.storage, name)
    run.create("{}")
    run.claim_attempt(1, None, 1, config.train.zero_stage)
    loop = Loop(config, group.world, group.cache, lambda event: None, Control)
    loop.build()
    loop.load()
    return loop


def take_turns(first: Callable[[], Any], second: Callable[[], Any], seconds: float, share: float, seed: int) -> Seconds:
    """Pairs of steps until each arm has had so many seconds; the second waits for a share of each step."""
    draw, arms = random.Random(seed), {"A": (first, 0.0), "B": (second, share)}
    found: Seconds = {name: [] for name in arms}
    while min(map(sum, found.values())) < seconds:
        for name in draw.sample(sorted(arms), 2):
            step, waits = arms[name]
            found[name].append(_timed(step, waits))
    return found


def _timed(step: Callable[[], Any], waits: float) -> float:
    began = time.perf_counter()
    step()
    end = began + (time.perf_counter() - began) * (1 + waits)
    while (now := time.perf_counter()) < end:
        pass  # busy, as a slower step is: a sleep would give the processor away
    return now - began


def trial(group: Group, root: Path, name: str, seconds: float, share: float, seed: int) -> Seconds:
    """On the one rank of a fresh process: builds both arms, in an order of its own draw, and has them take turns."""
    torch.set_num_threads(1)
    names = random.Random(seed + 1).sample([f"{name}-a", f"{name}-b"], 2)
    loops = {each[-1]: loop_of(group, root, each) for each in names}
    for _ in range(WARM_UP_STEPS):
        for loop in loops.values():
            loop.train_step()
    return take_turns(loops["a"].train_step, loops["b"].train_step, seconds, share, seed)


def judged(found: Seconds, folder: Path, name: str, load: LoadAverage) -> dict[str, Any]:
    """What the comparison says of the two arms' files."""
    environment = fingerprint()
    del environment["load_average"]
    paths = []
    for arm, values in found.items():
        result = Result(
            benchmark="compare_power",
            command=[],
            build=Build(version=environment["packages"]["zerofleet"], commit=None),
            environment=environment,
            load_average=load,
            started_at="",
            duration_s=sum(values),
            exit_code=0,
            alternation=Alternation(session=name, arm=arm),
            series=[Series.of("step", "s", "lower", values)],
            measured={},
        )
        paths.append(folder / f"{name}-{arm}.json")
        result.write(paths[-1])
    first, second = map(read_result, paths)
    (finding,) = compare(first, second)
    assert finding.interval is not None, "there are pairs enough"
    shifts = [math.log(b / a) for a, b in zip(found["A"], found["B"], strict=True)]
    return {
        "verdict": finding.verdict,
        "ratio": finding.interval.ratio,
        "interval": [finding.interval.low, finding.interval.high],
        "pairs": len(shifts),
        "median_step_s": statistics.median(found["A"]),
        "pair_scatter": statistics.stdev(shifts),
    }


def measure(root: Path, repetitions: int, seconds: float) -> dict[str, Any]:
    """Trials by kind, the kinds in turns."""
    (root / "corpus.jsonl").write_text(corpus())
    config = job(root, "cache")
    cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None).path
    trials: dict[str, list[dict[str, Any]]] = {kind: [] for kind in PLANTED}
    for number in range(repetitions):
        for index, (kind, share) in enumerate(PLANTED.items()):
            name, before = f"trial-{number}-{index}", os.getloadavg()
            arguments = (root, name, seconds, share, 2 * number + index)
            found = run_group(job(root, name), cache, 1, 1, no_saves, trial, *arguments)
            load = LoadAverage(before=before, after=os.getloadavg())
            trials[kind].append({**judged(found, root, name, load), "load_average": before[0]})
            print(f"{kind}: {_line(trials[kind][-1])}", flush=True)
            shutil.rmtree(root / "runs")
    return {kind: summary(kind, found) for kind, found in trials.items()}


def summary(kind: str, trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often which verdict came, against the bar."""
    right, bar = BARS[kind]
    counts = {
        verdict: sum(each["verdict"] == verdict for each in trials) for verdict in ("cannot tell", "faster", "slower")
    }
    share = counts[right] / len(trials)
    return {"verdicts": counts, "right": right, "share": share, "bar": bar, "met": share >= bar, "trials": list(trials)}


def _line(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return (
        f"{found['verdict']}, {found['ratio']:.3f} [{low:.3f}, {high:.3f}], {found['pairs']} pairs of {found['median_step_s'] * 1e3:.1f} ms that "
        f"scatter by {found['pair_scatter']:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=40, help="trials of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="that each arm trains in a trial")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    prepare_environment()
    root = Path(tempfile.mkdtemp(prefix="zerofleet-compare-", dir="/var/tmp"))
    try:
        arms = measure(root, arguments.repetitions, arguments.seconds)
    finally:
        shutil.rmtree(root)
    record = {
        "benchmark": "compare_power",
        "config": {"repetitions": arguments.repetitions, "seconds": arguments.seconds, "model": MODEL},
        "arms": arms,
        "environment": fingerprint(),
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    for kind, found in arms.items():
        met = "met" if found["met"] else "MISSED"
        print(f"{kind}: {found['verdicts']}, {found['right']!r} in {found['share']:.1%}, bar {found['bar']:.0%}: {met}")
    sys.exit(not all(found["met"] for found in arms.values()))


if __name__ == "__main__":
    main()
