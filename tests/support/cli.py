"""The command line as a user calls it, on a tiny recipe."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.support.ranks import job
from zerofleet.launch.audit import audit_run
from zerofleet.launch.drivers import driver_records
from zerofleet.trainer.run_folder import RunFolder, last_that_counts


class Cli:
    """A workplace with a recipe, a storage folder and a data cache of its own."""

    def __init__(self, folder: Path, corpus: Path) -> None:
        self.folder, self.storage = folder, folder / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe = folder / "tiny.yaml"
        sections = job(folder, corpus).model_dump(mode="json", exclude_unset=True)
        sections["run"] = {"storage": str(self.storage)}
        sections["cluster"] = {"ranks_per_node": 2, "cpus_per_rank": 0.5, "stop_timeout_s": 60}
        self.recipe.write_text(yaml.safe_dump(sections))

    def __call__(self, *arguments: str, timeout_s: float = 150, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "zerofleet.launch", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=self.folder,
            env={**os.environ, "ZEROFLEET_STORAGE": str(self.storage), **environment},
        )

    def submit(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self("submit", str(self.recipe), f"run.name={name}", *arguments, **environment)

    def run(self, name: str) -> RunFolder:
        return RunFolder(str(self.storage), name)


def losses(run: RunFolder) -> dict[int, float]:
    """Per step, the loss of the last attempt that ran it."""
    return {record["step"]: record["data"]["loss"] for record in run.read("metrics") if record["kind"] == "step"}


def positions(run: RunFolder) -> list[int]:
    """Positions of all ledger lines that count."""
    attempts = run.attempts()
    last = {record.attempt: last_that_counts(record.attempt, attempts) for record in attempts}
    return sorted(
        position
        for line in run.read("ledger")
        if (limit := last[line["attempt"]]) is None or line["step"] <= limit
        for begin, end in line["ranges"]
        for position in range(begin, end)
    )


def assert_audited(run: RunFolder, last_step: int) -> None:
    """The audit proves every step up to that one."""
    found = audit_run(run).audit
    assert found.is_exact, "\n".join(map(str, found.findings))
    assert found.last_step == last_step


def wait_for_step(run: RunFolder, step: int, timeout_s: float = 90) -> None:
    """Until that step is recorded."""
    deadline = time.monotonic() + timeout_s
    while max(losses(run), default=0) < step:
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.01)


def kill_rank_at(run: RunFolder, rank: int, step: int, draw: random.Random, timeout_s: float = 90) -> None:
    """kill -9 of a rank of attempt 1, a random moment after `step` was recorded."""
    wait_for_step(run, step, timeout_s)
    time.sleep(draw.uniform(0, 0.05))
    pid = next(e.data["pid"] for e in run.events() if e.kind == "phase" and e.phase == "init" and e.rank == rank)
    os.kill(pid, signal.SIGKILL)


def wait_for_end(cli: Cli, name: str, timeout_s: float = 120, after_driver: int = 0) -> str:
    """The final state of a detached run, as its driver of that number or a later one said it."""
    since = next((r.started_at for r in driver_records(cli.run(name)) if r.number == after_driver), 0.0)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        states = [e.data["to"] for e in cli.run(name).events() if e.kind == "state" and e.start >= since]
        if states and states[-1] in ("FINISHED", "STOPPED", "FAILED"):
            return states[-1]
        time.sleep(0.2)
    raise AssertionError(f"run {name} did not end within {timeout_s} s")
