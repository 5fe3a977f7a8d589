"""One trial: start a system's command, kill a rank, wait for a step that nobody had finished before, end everything."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil

from zerofleet.benchmarks.peers.common import Line

KILLED_RANK = 1
START_TIMEOUT_S = 180.0
RECOVERY_TIMEOUT_S = 180.0
END_TIMEOUT_S = 30.0
WAIT_BEFORE_KILL_S = 0.02
WAIT_AFTER_KILL_S = 0.2
"""Seconds between two looks. After the kill they need not be short, since the ranks' own clocks are read."""

MARK = "ZEROFLEET_BENCHMARK_TRIAL"
"""Environment variable that all processes of a trial inherit: so what is ended is what was started."""


T = TypeVar("T")


class TrialError(Exception):
    """A system did not do what is measured; the message ends with the last lines of its output."""


@dataclass(frozen=True)
class Plan:
    """Rank 1 is killed `delay_s` after step `kill_step` was seen to be finished."""

    kill_step: int
    delay_s: float


@dataclass(frozen=True)
class Kill:
    """What was done: `time` is Unix time in seconds."""

    pid: int
    time: float


@dataclass(frozen=True)
class Trial:
    """What one trial gave, in seconds and steps."""

    cold_start_s: float
    """From starting the command to the end of the first step."""
    recovery_s: float
    """From the kill to the end of the first step that had not been finished before it."""
    median_step_s: float
    """From the end of a step to the end of the next, before the kill: with whatever keeps the state in between."""
    newest_step: int
    """The newest step that was finished before the kill."""
    first_step_after: int
    repeated_steps: int
    """Steps that were finished before the kill and done again after it."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class System(Protocol):
    """Something that trains and recovers."""

    @property
    def name(self) -> str: ...

    def command(self, folder: Path) -> list[str]:
        """Its command line, after writing to `folder` what it needs."""

    def lines(self, folder: Path) -> list[Line]:
        """The steps that its ranks have finished so far, those of killed ranks included. At least rank 0's."""

    def pid(self, folder: Path, rank: int) -> int:
        """The process of a rank that has finished a step, in the training's first life."""

    def stop(self, folder: Path) -> None:
        """Ends the training as its user would, where there is a way. Raises TrialError."""


def measure(lines: Sequence[Line], started_at: float, kill: Kill) -> Trial | None:
    """A trial's figures; None while no new step is finished.

    The processes of before the kill are told from those after it by their pids: what a survivor finished while it had not
    noticed yet is no recovery. Rank 0's clock counts.
    """
    old_pids = {kill.pid} | {line.pid for line in lines if line.time <= kill.time}
    before = [line for line in lines if line.pid in old_pids]
    after = sorted((line for line in lines if line.pid not in old_pids), key=lambda line: line.time)
    newest = max(line.step for line in before)
    new = next((line for line in after if line.rank == 0 and line.step > newest), None)
    if new is None:
        return None
    ends = {line.step: line.time for line in before if line.rank == 0}
    first_after = min(line.step for line in after)
    return Trial(
        cold_start_s=min(ends.values()) - started_at,
        recovery_s=new.time - kill.time,
        median_step_s=statistics.median(ends[step] - ends[step - 1] for step in ends if step - 1 in ends),
        newest_step=newest,
        first_step_after=first_after,
        repeated_steps=max(0, newest - first_after + 1),
    )


def run_trial(system: System, folder: Path, plan: Plan) -> Trial:
    """Raises TrialError. Whatever happens, nothing of the trial runs on."""
    command, log = system.command(folder), folder / "output.log"
    with log.open("wb") as output:
        started_at = time.time()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, MARK: str(folder)},
            start_new_session=True,
        )
    try:
        kill = _kill_rank(system, folder, plan)
        trial = _wait(lambda: measure(system.lines(folder), started_at, kill), RECOVERY_TIMEOUT_S, WAIT_AFTER_KILL_S)
        if trial is None:
            raise TrialError(f"no new step within {RECOVERY_TIMEOUT_S:.0f} s of the kill")
        system.stop(folder)
        return trial
    except TrialError as error:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise TrialError(f"{system.name}: {error}. The end of its output:\n{tail}") from error
    finally:
        _end(process, str(folder))


def _kill_rank(system: System, folder: Path, plan: Plan) -> Kill:
    def is_there() -> bool | None:
        return any(line.step >= plan.kill_step for line in system.lines(folder)) or None

    if not _wait(is_there, START_TIMEOUT_S, WAIT_BEFORE_KILL_S):
        raise TrialError(f"step {plan.kill_step} was not reached within {START_TIMEOUT_S:.0f} s")
    pid = system.pid(folder, KILLED_RANK)
    time.sleep(plan.delay_s)
    kill = Kill(pid, time.time())
    os.kill(pid, signal.SIGKILL)
    return kill


def _wait(look: Callable[[], T | None], timeout_s: float, interval_s: float) -> T | None:
    """What `look` finds; None when it finds nothing in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(interval_s)
    return None


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Asks the command to end, then kills what is left of the trial."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_TIMEOUT_S)
    deadline = time.monotonic() + END_TIMEOUT_S
    while (left := _marked(mark)) and time.monotonic() < deadline:
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, timeout=0.2)
    process.wait()
    assert not left, f"processes {left} of a trial do not end"


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it ended meanwhile, or is another user's
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
