"""The fault matrix: every fault of fault_matrix.yaml at every phase, each a run of its own, compared with the unbroken run.

    zerofleet bench fault_matrix --output benchmarks/results/DATE-faults.json [--only "kill rank" ...]

Writes DATE-faults.json and DATE-faults.md, anew after every cell. Exit code 1 when a cell does not hold. A cell is a tiny fp32 Llama on
two ranks with a snapshot at every step and a checkpoint every seventh. Faults of nodes run over hosts that are network namespaces
(benchmarks/hosts), outages of S3 against a server behind a proxy (benchmarks/s3).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from zerofleet.benchmarks.fault_places import OverHosts, OverS3, Place, ThisHost, why_not_over
from zerofleet.cluster.faults import Fault
from zerofleet.launch.chaos.plan import plan_of
from zerofleet.launch.chaos.trial import Trial, named, reference_for, run_trial
from zerofleet.launch.config import JobConfig, override_job
from zerofleet.launch.environment import fingerprint

MATRIX = Path(__file__).with_name("fault_matrix.yaml")
RANKS = 2
CELL_TIMEOUT_S = 360.0
"""A cell that takes longer has failed: nothing may wait without bound."""
WORDS = "whatever fails no sample is lost or seen twice and every second of the bill is accounted for by the ledger"


@dataclass(frozen=True)
class Cell:
    """One fault at one phase."""

    fault: str
    phase: str
    plan: tuple[Fault, ...]
    overrides: tuple[str, ...]
    place: str
    """On this host when empty, else `hosts` or `s3`."""
    in_tests: bool
    """Whether `make test` runs it."""

    @property
    def name(self) -> str:
        return f"{self.fault} / {self.phase}"

    @property
    def run_name(self) -> str:
        return self.name.replace(" / ", "-at-").replace(" ", "-").lower()


def cells(matrix: dict[str, Any], total_steps: int) -> Iterator[Cell]:
    """Every cell of the parsed matrix. Raises UserError for a plan that is none."""
    for fault, row in matrix["faults"].items():
        for phase in row["phases"]:
            place = dict(matrix["phases"][phase])
            before = [*row.get("before", []), *place.pop("before", [])]
            entries = before + [{**place, **entry} for entry in row["plan"]]
            plan = plan_of(entries, total_steps, RANKS, f"{fault} / {phase}")
            in_tests = f"{fault} / {phase}" in matrix["test"]
            yield Cell(fault, phase, plan, tuple(row.get("job", ())), row.get("place", ""), in_tests)


def read_matrix() -> dict[str, Any]:
    matrix: dict[str, Any] = yaml.safe_load(MATRIX.read_text())
    return matrix


class Workplace:
    """A folder with a corpus, and the unbroken run that every cell is compared with."""

    def __init__(self, folder: Path, matrix: dict[str, Any]) -> None:
        self._folder = folder
        _write_corpus(folder / "corpus")
        self.job = override_job(_tiny_job(folder), matrix["job"])
        self._unbroken: Trial | None = None
        self.places: dict[str, Place] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in self.places.values():
            place.close()

    def place(self, name: str) -> Place:
        """Made when it is first needed."""
        if name not in self.places:
            self.places[name] = OverHosts(self._folder) if name == "hosts" else OverS3() if name == "s3" else ThisHost()
        return self.places[name]

    @property
    def unbroken(self) -> Trial:
        """The unbroken run, which is run once."""
        if self._unbroken is None:
            self._unbroken = run_trial(named(self.job, "unbroken"), self._folder, (), CELL_TIMEOUT_S)
            state = self._unbroken.record.final_state
            assert state == "FINISHED", f"the unbroken run ended in state {state or 'none'}; its folder: {self._folder}"
        return self._unbroken

    def run(self, cell: Cell) -> tuple[Trial, list[str]]:
        """The cell's run and what it fails to show."""
        unbroken = self.unbroken
        job = override_job(self.job, [f"run.name={cell.run_name}", *cell.overrides])
        trial = self.place(cell.place).run(job, self._folder, cell.plan, CELL_TIMEOUT_S)
        reference = reference_for(trial, unbroken, job, self._folder, CELL_TIMEOUT_S)
        return trial, trial.problems(reference)


def _tiny_job(folder: Path) -> JobConfig:
    model = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    return JobConfig.model_validate(
        {
            "run": {"storage": str(folder / "runs")},
            "model": {"config": model},
            "data": {
                "files": [f"{folder}/corpus/*.txt"],
                "tokenizer_vocab_size": 400,
                "sequence_length": 32,
                "heldout_fraction": 0.1,
                "cache": str(folder / "cache"),
            },
            "train": {
                "steps": 40,
                "global_batch_size": 8,
                "micro_batch_size": 2,
                "precision": "fp32",
                "learning_rate": 1e-2,
                "eval_sequences": 8,
                "replica_check_interval_steps": 2,
            },
            "cluster": {"ranks_per_node": RANKS, "cpus_per_rank": 0.5},
        }
    )


def _write_corpus(folder: Path) -> None:
    """Forty small text files with something to learn in them; always the same."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, words = random.Random(7), WORDS.split()
    for number in range(40):
        lines = [" ".join(draw.choices(words, k=draw.randint(5, 20))) for _ in range(30)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines))


def cell_result(cell: Cell, trial: Trial, problems: list[str]) -> dict[str, Any]:
    """A cell's line of the report: the costs are those of its own fault, which is the last of its plan."""
    faults = trial.to_dict()["faults"]
    cost = faults[-1] if faults else {}
    return {
        "fault": cell.fault,
        "phase": cell.phase,
        **{key: cost.get(key) for key in ("step", "detected_s", "restored_s", "repeated_steps")},
        "total_s": trial.wall_s,
        "attempts": len(trial.record.attempts),
        "resumes": trial.num_resumes,
        "state": trial.record.final_state,
        "problems": problems,
    }


def markdown(record: dict[str, Any]) -> str:
    """The report for people."""
    results, environment = record["cells"], record["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    bad = [result for result in results if result["problems"]]
    lines = [
        f"# Fault matrix, {record['date']}",
        "",
        f"{len(results) - len(bad)} of {len(results)} cells hold: the run ends by itself, or by the resume that the fault calls for; losses bitwise "
        "those of the unbroken run; every position fed exactly once over the steps that count.",
        "",
        f"{environment['processor']}, {environment['cores']} cores, {environment['memory_gib']} GiB; Python {environment['python']}; {packages}. "
        f"Load average {environment['load_average'][0]:.1f}. Unbroken run: {record['unbroken_s']:.1f} s. Job: {' '.join(record['job'])}.",
        "",
        "Seconds after the strike to the first event that says so (detected) and to the end of the first new step, else the next durable "
        "checkpoint (restored); total: the whole run, start and resumes included.",
        "",
        "| fault | phase | detected s | restored s | total s | steps repeated | attempts | resumes | outcome |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(result) for result in results),
    ]
    for result in bad:
        lines += ["", f"**{result['fault']} / {result['phase']}**: {'; '.join(result['problems'])}"]
    return "\n".join(lines) + "\n"


def _row(result: dict[str, Any]) -> str:
    seconds = ["-" if result[key] is None else f"{result[key]:.2f}" for key in ("detected_s", "restored_s", "total_s")]
    outcome = "**fails**" if result["problems"] else result["state"].lower()
    counts = [str(result[key]) for key in ("repeated_steps", "attempts", "resumes")]
    return f"| {' | '.join([result['fault'], result['phase'], *seconds, *counts, outcome])} |"


def write_report(output: Path, work: Workplace, matrix: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
    """OUTPUT.json and OUTPUT.md."""
    record = {
        "benchmark": "fault_matrix",
        "date": time.strftime("%Y-%m-%d"),
        "job": matrix["job"],
        "unbroken_s": work.unbroken.wall_s,
        "cells": list(results),
        "environment": fingerprint(),
    }
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    output.with_suffix(".md").write_text(markdown(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="path of the report without its ending")
    parser.add_argument("--only", nargs="*", default=[], help="faults, or `fault / phase`; without it all")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that a run that is driven is ended
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    matrix, folder, results = read_matrix(), Path(tempfile.mkdtemp(prefix="zf-faults-")), []
    with Workplace(folder, matrix) as work:
        for cell in cells(matrix, work.job.train.steps):
            if arguments.only and not {cell.fault, cell.name} & set(arguments.only):
                continue
            if reason := why_not_over(cell.place):
                sys.exit(f"{cell.name}: {reason}")
            trial, problems = work.run(cell)
            results.append(cell_result(cell, trial, problems))
            print(f"{_row(results[-1])} {'; '.join(problems)}", flush=True)
            write_report(arguments.output, work, matrix, results)
    if any(result["problems"] for result in results):
        sys.exit(f"cells do not hold; their runs lie in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
