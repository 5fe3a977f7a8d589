"""What becomes of a run of silos, and of its loss, when one of them is slow, dead, back again, sends NaN or garbage, or joins late.

    zerofleet bench silo_faults --output benchmarks/results/DATE-silo-faults.json [--only NAME ...] [key=value ...]

Three small silos of text from the Python that runs this, one rank each; c is the one that it happens to. Every run is submitted as a user would. The loss is the held-out one of
silo a after the last outer step, when all have the outer weights. Writes OUTPUT.md, the table, and OUTPUT.json. Overrides change all runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zerofleet.launch.drivers import driver_records
from zerofleet.launch.environment import fingerprint
from zerofleet.launch.silos.jobs import silo_run
from zerofleet.trainer.run_folder import RunFolder

VICTIM, INTERVAL, STEPS = "c", 4, 64
NUM_ROUNDS = STEPS // INTERVAL
PATIENCE_S = 400.0
"""For anything that a run is waited for."""
_LOOK_S = 0.05

RECIPE: dict[str, Any] = {
    "model": {
        "config": {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        }
    },
    "data": {
        "files": ["python-stdlib/[a-d]*.py"],
        "tokenizer_vocab_size": 1024,
        "sequence_length": 64,
        "heldout_fraction": 0.05,
    },
    "train": {
        "steps": STEPS,
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "zero_stage": 1,
        "precision": "fp32",
        "learning_rate": 3e-3,
        "schedule": "constant",
        "eval_sequences": 64,
    },
    "checkpoint": {"interval_steps": 16, "export": False},
    "cluster": {"nodes": 1, "ranks_per_node": 1, "cpus_per_rank": 0.5},
    "silos": {
        "strategy": "diloco",
        "interval_steps": INTERVAL,
        "quorum": 2,
        "deadline_s": 5.0,
        "keep_rounds": NUM_ROUNDS,
        "members": {
            "a": {"files": ["python-stdlib/[a-h]*.py"]},
            "b": {"files": ["python-stdlib/[i-p]*.py"]},
            VICTIM: {"files": ["python-stdlib/[q-z]*.py"]},
        },
    },
}


class Live:
    """A run that is under way."""

    def __init__(self, run: RunFolder, process: subprocess.Popen[str]) -> None:
        self.run, self.victim, self._process = run, silo_run(run, VICTIM), process

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        """Raises RuntimeError when the run ends first, or it takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.run.name}: {what} did not come")
            time.sleep(_LOOK_S)  # files: nothing that could be waited for with

    def round_without(self) -> bool:
        return any(VICTIM in event.data["missing"] for event in self.run.events() if event.kind == "round")

    def victims_round(self) -> int:
        """The newest that it was in."""
        return max((e.data["round"] for e in self.victim.events() if e.kind == "outer"), default=0)


def stand_still(live: Live) -> None:
    """Its rank is stopped in its third round, until a round has been closed without it."""
    live.wait_for(lambda: live.victims_round() >= 2, "round 2 of the slow silo")
    pids = [e.data["pid"] for e in live.victim.events() if e.kind == "phase" and e.phase == "init"]
    os.kill(pids[-1], signal.SIGSTOP)
    try:
        live.wait_for(live.round_without, "a round without the slow silo")
    finally:
        os.kill(pids[-1], signal.SIGCONT)


def kill_driver(live: Live) -> None:
    live.wait_for(lambda: live.victims_round() >= 2, "round 2 of the silo that is killed")
    os.kill(driver_records(live.victim)[-1].pid, signal.SIGKILL)


def hold_back(live: Live) -> None:
    """Its driver is stopped as soon as there is one, until a round has been closed without it."""
    live.wait_for(lambda: bool(driver_records(live.victim)), "the driver of the late silo")
    pid = driver_records(live.victim)[-1].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        live.wait_for(live.round_without, "a round without the late silo")
    finally:
        os.kill(pid, signal.SIGCONT)


def planted(kind: str, **more: Any) -> dict[str, Any]:
    """In the victim, from the middle of the run on."""
    return {"kind": kind, "rank": 0, "step": STEPS // 2, "silo": VICTIM, **more}


@dataclass(frozen=True)
class Scenario:
    name: str
    done: str
    """What happens, in words."""
    strike: Callable[[Live], None] | None = None
    faults: Sequence[dict[str, Any]] = ()
    overrides: Sequence[str] = ()


SCENARIOS = (
    Scenario("none", "nothing"),
    Scenario("slow", "c's rank stands still until a round has closed without it", stand_still),
    Scenario("dead", "c fails at half of its steps, in every attempt", faults=[planted("raise", attempt=None)]),
    Scenario(
        "back again", "c's driver gets a SIGKILL after two rounds", kill_driver, overrides=["silos.deadline_s=600"]
    ),
    Scenario("NaN", "a NaN in one of c's deltas", faults=[planted("nan", point="outer")]),
    Scenario(
        "garbage, mean",
        "one of c's deltas points the wrong way and is four times as long",
        faults=[planted("garbage", point="outer")],
    ),
    Scenario(
        "garbage, median",
        "the same, with `silos.aggregation: median`",
        faults=[planted("garbage", point="outer")],
        overrides=["silos.aggregation=median", "silos.quorum=3"],
    ),
    Scenario("joins late", "c's driver begins when a round has closed without it", hold_back),
)


@dataclass(frozen=True)
class Found:
    """What one run came to."""

    name: str
    done: str
    state: str
    outer_steps: int
    """Rounds that moved the outer weights."""
    missing: list[int]
    """Rounds without the victim, because it was late, dead or not there yet."""
    rejected: list[int]
    """Rounds that rejected its delta."""
    states: dict[str, int] = field(default_factory=dict)
    """How often the victim was told what of its deltas."""
    heldout_loss: float = float("nan")
    losses: list[tuple[int, float]] = field(default_factory=list)
    """By step, the mean over the silos' tokens of a round."""
    incidents: list[str] = field(default_factory=list)
    seconds: float = 0.0


def found_in(scenario: Scenario, run: RunFolder, seconds: float) -> Found:
    events = list(run.events())
    rounds = [event.data for event in events if event.kind == "round"]
    states: dict[str, int] = {}
    for event in silo_run(run, VICTIM).events():
        if event.kind == "outer":
            states[event.data["state"]] = states.get(event.data["state"], 0) + 1
    evals = [line for line in silo_run(run, "a").read("metrics") if line["kind"] == "eval"]
    losses = {line["step"]: line["data"]["loss"] for line in run.read("metrics") if line["kind"] == "step"}
    return Found(
        name=scenario.name,
        done=scenario.done,
        state=[event.data["to"] for event in events if event.kind == "state"][-1],
        outer_steps=sum(data["is_step"] for data in rounds),
        missing=[data["round"] for data in rounds if VICTIM in data["missing"]],
        rejected=[data["round"] for data in rounds if VICTIM in data["rejected"]],
        states=states,
        heldout_loss=evals[-1]["data"]["loss"],
        losses=sorted(losses.items()),
        incidents=[event.data["message"] for event in events if event.kind == "incident"],
        seconds=seconds,
    )


def measure(scenario: Scenario, storage: Path, overrides: Sequence[str]) -> Found:
    """Submits it and does to it what the scenario says. Raises RuntimeError."""
    recipe = storage / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    name = scenario.name.lower().replace(", ", "-").replace(" ", "-")
    command = [sys.executable, "-m", "zerofleet.launch", "submit", str(recipe)]
    settings = [f"run.name={name}", f"run.storage={storage}", *scenario.overrides, *overrides]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        environment = {**os.environ, "ZEROFLEET_FAULTS": json.dumps(list(scenario.faults))}
        process = subprocess.Popen([*command, *settings], env=environment, stdout=log, stderr=log, text=True)
        run = RunFolder(str(storage), name)
        try:
            if scenario.strike is not None:
                scenario.strike(Live(run, process))
            process.wait(PATIENCE_S)
        finally:
            process.terminate()  # of no effect on one that has ended
            process.wait()
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"{name} ended with exit code {process.returncode}: {log.read()[-3000:]}")
    return found_in(scenario, run, time.monotonic() - began)


def table(rows: Sequence[Found]) -> str:
    """Markdown. The first row is the one that the others are compared with."""
    lines = [
        "| fault | what happens to silo c | run | outer steps | rounds without c | held-out loss | against none |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        without = [*(f"{number}" for number in row.missing), *(f"{number} (rejected)" for number in row.rejected)]
        gap = row.heldout_loss / rows[0].heldout_loss - 1
        change = "the same bits" if row.losses == rows[0].losses and row is not rows[0] else f"{gap:+.2%}"
        cells = (
            row.name,
            row.done,
            row.state,
            row.outer_steps,
            ", ".join(without) or "none",
            f"{row.heldout_loss:.4f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} | {change if row is not rows[0] else ''} |")
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Found], environment: dict[str, Any], overrides: Sequence[str]) -> str:
    facts = f"{environment['processor']}, {environment['cores']} cores"
    told = "\n".join(f"- {row.name}: {text}" for row in rows for text in row.incidents)
    return (
        f"# Faults of one silo of three\n\nMade by `zerofleet bench silo_faults {' '.join(overrides)}`; {facts}. {NUM_ROUNDS} rounds of "
        f"{INTERVAL} steps, DiLoCo, quorum 2 of 3, deadline 5 s. The held-out loss is silo a's after the last outer step.\n\n{table(rows)}\n"
        f"## What the runs said\n{told or 'nothing'}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="zerofleet bench silo_faults", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--output", type=Path, required=True, help="path without its ending")
    parser.add_argument("--only", action="append", choices=[scenario.name for scenario in SCENARIOS], default=[])
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="zerofleet-silo-faults-") as storage:
        for scenario in SCENARIOS:
            if not options.only or scenario.name in ("none", *options.only):
                rows.append(measure(scenario, Path(storage), options.overrides))
                print(f"{scenario.name}: {rows[-1].state}, held-out loss {rows[-1].heldout_loss:.4f}", flush=True)
    environment = fingerprint()
    result = {"environment": environment, "overrides": options.overrides, "rows": [vars(row) for row in rows]}
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(page(rows, environment, options.overrides))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
