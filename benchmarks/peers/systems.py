"""The systems under measurement: how each is started, what it says of its steps, how it is stopped."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from zerofleet.benchmarks.peers import common
from zerofleet.benchmarks.peers.common import Line, read_lines
from zerofleet.benchmarks.recovery_trial import KILLED_RANK, System, TrialError
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import RunFolder

STEPS = 100_000
"""More than any trial sees."""
STOP_TIMEOUT_S = 90.0

_RUN = "recovery"
_MODULE = "zerofleet.benchmarks.peers"
_STEP_IN_VERDICT = re.compile(r"after step (\d+)")


class Zerofleet:
    """Through the command line: `submit --detach`, `stop`. Its run folder says what its ranks did."""

    name = "zerofleet"

    def command(self, folder: Path) -> list[str]:
        """A snapshot in memory after every step, a checkpoint in storage every 50."""
        (folder / "corpus.jsonl").write_text(corpus())
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(job(folder)))
        return [sys.executable, "-m", "zerofleet.launch", "submit", str(recipe), f"run.name={_RUN}", "--detach"]

    def lines(self, folder: Path) -> list[Line]:
        """From the metrics (rank 0's steps), and from the verdict: the last step that the killed rank had told of.

        A step is written down when its snapshot is complete; one that was finished and lost is known from the verdict only.
        """
        run = _run(folder)
        steps = [Event(**record) for record in run.read("metrics") if record["kind"] == "step"]
        events = list(run.events())  # after the metrics: whose process it was is written before what it did
        pids = _pids(events)
        lines = [Line(step.start + step.duration_s, 0, pids[step.attempt, 0], step.step) for step in steps]
        for event in events:
            if event.kind == "verdict":
                if not (match := _STEP_IN_VERDICT.search(event.data["sentence"])):
                    raise TrialError(f"a verdict that does not say after which step: {event.data['sentence']}")
                lines.append(Line(event.start, KILLED_RANK, pids[event.attempt, KILLED_RANK], int(match[1])))
        return lines

    def pid(self, folder: Path, rank: int) -> int:
        return _pids(_run(folder).events())[1, rank]

    def stop(self, folder: Path) -> None:
        run = str(folder / "runs" / _RUN)
        command = [sys.executable, "-m", "zerofleet.launch", "stop", run]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STOP_TIMEOUT_S)
        if done.returncode:
            raise TrialError(f"`zerofleet stop` ended with {done.returncode}: {done.stdout}{done.stderr}")


def _run(folder: Path) -> RunFolder:
    return RunFolder(str(folder / "runs"), _RUN)


def _pids(events: Iterable[Event]) -> dict[tuple[int, int], int]:
    """By attempt and rank."""
    begun = (event for event in events if event.kind == "phase" and event.phase == "init")
    return {(event.attempt, event.rank): event.data["pid"] for event in begun}


class Peer:
    """A peer's ranks write their lines themselves; it is stopped by ending its command."""

    def __init__(self, name: str, *launcher: str) -> None:
        self.name = name
        self._launcher = launcher

    def command(self, folder: Path) -> list[str]:
        (folder / "checkpoints").mkdir()
        return [sys.executable, "-m", *self._launcher, f"{_MODULE}.{self.name}", str(folder)]

    def lines(self, folder: Path) -> list[Line]:
        return read_lines(folder)

    def pid(self, folder: Path, rank: int) -> int:
        return next(line.pid for line in read_lines(folder) if line.rank == rank)

    def stop(self, folder: Path) -> None:
        """There is no other way."""


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        Zerofleet(),
        Peer("ray_train"),
        Peer(
            "torchrun",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={common.WORLD_SIZE}",
            "--max-restarts=3",
            "--monitor-interval=0.1",
            "-m",
        ),
    )
}
"""By name, in the order of a round."""


def job(folder: Path) -> dict[str, Any]:
    """zerofleet's recipe of what the peers train."""
    return {
        "run": {"storage": str(folder / "runs")},
        "model": {"config": common.MODEL},
        "data": {
            "files": [str(folder / "corpus.jsonl")],
            "tokenizer_vocab_size": 1024,
            "sequence_length": common.SEQUENCE_LENGTH,
            "heldout_fraction": 0.0,
            "cache": str(folder / "cache"),
        },
        "train": {
            "steps": STEPS,
            "global_batch_size": common.GLOBAL_BATCH_SIZE,
            "micro_batch_size": common.MICRO_BATCH_SIZE,
            "zero_stage": 1,
            "precision": "fp32",
            "learning_rate": common.LEARNING_RATE,
            "betas": list(common.BETAS),
            "weight_decay": common.WEIGHT_DECAY,
            "gradient_clipping": common.GRADIENT_CLIPPING,
        },
        "checkpoint": {"interval_steps": 50, "snapshot_interval_steps": 1},
        "cluster": {"ranks_per_node": common.WORLD_SIZE},
    }


def corpus(num_documents: int = 200, words_per_document: int = 400, seed: int = 0) -> str:
    """JSON lines of made-up words: about 600 kB."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 10))) for _ in range(3000)]
    documents = (" ".join(draw.choices(words, k=words_per_document)) for _ in range(num_documents))
    return "".join(json.dumps({"text": text}) + "\n" for text in documents)
