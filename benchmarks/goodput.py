"""Goodput under a fault every minute: counted steps x the unbroken run's median step, by the wall time of the broken run.

    zerofleet bench goodput --output benchmarks/results/DATE-goodput.json [--minutes 15] [--interval-s 60]

A calibration run tells how many steps fill the time; then the same job runs twice: unbroken, and with a fault every
`interval-s` seconds from its first step on, of a random kind at a random rank (the seed is printed). The wall time is that of the whole
run, start-up and last save included; the share of training alone is told beside it. The broken run's losses have to be those of the unbroken run, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from zerofleet.cluster.chaos.injector import agents_of, own_ray_of
from zerofleet.cluster.goodput.history import end_of, median_step_s
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.accounts import read_history
from zerofleet.launch.chaos.proof import cost_of, problems
from zerofleet.launch.chaos.record import Record
from zerofleet.launch.chaos.trial import Trial, named, run_trial
from zerofleet.launch.config import JobConfig, load_job
from zerofleet.launch.environment import fingerprint
from zerofleet.trainer.run_folder import RunFolder

KINDS = ("kill", "freeze", "kill_agent")
RECIPE = Path(__file__).parents[1] / "launch/recipes/quickstart.yaml"
OVERRIDES = [
    "checkpoint.export=false",
    "checkpoint.snapshot_interval_steps=1",
    "cluster.max_failures=10",
    "train.global_batch_size=4",
    "train.micro_batch_size=2",
]
"""A snapshot at every step, and steps of half a second: at one failure a minute whoever cares would do so."""
CALIBRATION_STEPS = 60
BAR = 0.95
"""What the goodput has to reach."""
_LOOK_S = 0.05


@dataclass(frozen=True)
class Hit:
    """A fault that struck at `at` (Unix seconds)."""

    kind: str
    rank: int
    attempt: int
    at: float


class Striker(threading.Thread):
    """Strikes a run every `interval_s` seconds after its first step, until it is told to end."""

    def __init__(self, run: RunFolder, kinds: Sequence[str], interval_s: float, seed: int) -> None:
        super().__init__(name="striker", daemon=True)
        self._run, self._kinds, self._interval_s = run, kinds, interval_s
        self._draw, self._ending = random.Random(seed), threading.Event()
        self.hits: list[Hit] = []

    def run(self) -> None:
        while not any(True for _ in self._run.read("metrics")):
            if self._ending.wait(_LOOK_S):
                return
        while not self._ending.wait(self._interval_s):
            kind = self._draw.choice(self._kinds)
            while (hit := self._strike(kind)) is None and not self._ending.wait(_LOOK_S):
                pass  # the fault before is not mended yet: there is nobody to hit
            if hit is not None:
                self.hits.append(hit)
                print(f"  {hit}", flush=True)

    def end(self) -> None:
        self._ending.set()
        self.join()

    def _strike(self, kind: str) -> Hit | None:
        """None when there is nobody to hit."""
        attempt = max(record.attempt for record in self._run.attempts())
        pids = {
            event.data["pid"]: event.rank
            for event in self._run.events()
            if event.attempt == attempt and event.kind == "phase" and event.phase == "init"
        }
        try:
            victims = {pids[p.pid]: p for p in own_ray_of(self._run).processes() if p.pid in pids}
            rank = self._draw.choice(sorted(victims))
            victim = agents_of(self._run)[0] if kind == "kill_agent" else victims[rank]
            hit = Hit(kind, rank, attempt, time.time())
            victim.suspend() if kind == "freeze" else victim.kill()
        except (LookupError, psutil.NoSuchProcess):
            return None
        return hit


def shares_of(ledger: Ledger, median_s: float) -> dict[str, Any]:
    """Shares of wall time: of the whole run, and of its training (the first step's start to the last step's end). `labels` is where
    the time went, in seconds."""
    steps = [result for result in ledger.history.results if result.kind == "step"]
    useful_s = len(ledger.history.counted) * median_s
    training_s = max(map(end_of, steps)) - min(step.start for step in steps)
    return {
        "goodput": ledger.goodput(median_s),
        "goodput_of_training": useful_s / training_s,
        "training_s": training_s,
        "whole_run_s": ledger.wall_s,
        "useful_s": useful_s,
        "labels": ledger.labels,
    }


def by_kind(hits: Sequence[Hit], record: Record) -> dict[str, dict[str, Any]]:
    """What the hits of each kind cost: medians of seconds to the first sign and to the first new step, steps repeated."""
    table: dict[str, dict[str, Any]] = {}
    for kind in sorted({hit.kind for hit in hits}):
        found = [cost_of(record, hit.at, hit.attempt) for hit in hits if hit.kind == kind]
        seconds = {
            name: [s for cost in found if (s := getattr(cost, name)) is not None]
            for name in ("detected_s", "restored_s")
        }
        table[kind] = {
            "hits": len(found),
            **{f"median_{name}": statistics.median(values) for name, values in seconds.items() if values},
            "repeated_steps": [cost.repeated_steps for cost in found],
        }
    return table


def measure(job: JobConfig, minutes: float, kinds: Sequence[str], interval_s: float, seed: int) -> dict[str, Any]:
    """The benchmark's record."""
    calibrated_s = median_step_s(_finished(run_trial(_with(job, "calibration", CALIBRATION_STEPS), RECIPE)).steps)
    steps = max(CALIBRATION_STEPS, math.ceil(60 * minutes / calibrated_s))
    print(f"{steps} steps of {calibrated_s * 1e3:.0f} ms; seed {seed}", flush=True)
    unbroken = _finished(run_trial(_with(job, "unbroken", steps), RECIPE))
    broken_job = _with(job, "broken", steps)
    striker = Striker(RunFolder(broken_job.run.storage, "broken"), kinds, interval_s, seed)
    striker.start()
    try:
        trial = run_trial(broken_job, RECIPE)
    finally:
        striker.end()
    broken, median_s = trial.record, median_step_s(unbroken.steps)
    shares = shares_of(Ledger.of(read_history(trial.run)), median_s)
    unbroken_run = RunFolder(job.run.storage, "unbroken")
    return {
        "benchmark": "goodput",
        "config": {"steps": steps, "minutes": minutes, "interval_s": interval_s, "kinds": list(kinds), "seed": seed},
        **shares,
        "unbroken_goodput": shares_of(Ledger.of(read_history(unbroken_run)), median_s),
        "bar": BAR,
        "met": shares["goodput"] >= BAR,
        "unbroken_median_step_s": median_s,
        "final_loss": {"broken": broken.losses().get(steps), "unbroken": unbroken.losses()[steps]},
        "problems": problems(broken, unbroken, (), ()),
        "attempts": len(broken.attempts),
        "by_kind": by_kind(striker.hits, broken),
        "hits": [asdict(hit) for hit in striker.hits],
        "environment": fingerprint(),
    }


def _finished(trial: Trial) -> Record:
    """Of a run without faults. Raises SystemExit when it did not finish."""
    if trial.record.final_state != "FINISHED":
        raise SystemExit(f"run {trial.run.storage.path()} ended in state {trial.record.final_state or 'none'}")
    return trial.record


def _with(job: JobConfig, name: str, steps: int) -> JobConfig:
    job = named(job, name)
    return job.model_copy(update={"train": job.train.model_copy(update={"steps": steps})})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--interval-s", type=float, default=60.0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that a run that is driven is ended
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="zf-goodput-"))
    job = load_job(arguments.recipe, [*OVERRIDES, *arguments.overrides, f"run.storage={folder}"])
    record = measure(job, arguments.minutes, arguments.kinds, arguments.interval_s, arguments.seed)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key not in ("hits", "environment")}, indent=1))
    if record["problems"]:
        sys.exit(f"the broken run is not the unbroken one; both lie in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
