"""Two builds of zerofleet, this one and another checkout, whose steps take turns: is this one faster, slower, or can nobody tell?

    zerofleet bench builds ../before launch/recipes/quickstart.yaml train.precision=bf16 --output DATE-builds

Each build trains the same recipe without saves, in ranks of its own whose `zerofleet` is that checkout's; Python and all other packages are this one's. They live side by side and take turns
in an order that is drawn for each pair, and are started anew several times: where a process's memory happens to lie changes its steps for as long as it lives. Both results go to files,
DATE-builds-A.json (the other) and DATE-builds-B.json (this one), and to the comparison, whose answer is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

from zerofleet.benchmarks import builds_rank
from zerofleet.benchmarks.checkout import ROOT, build_of
from zerofleet.benchmarks.comparison import compare, text_of
from zerofleet.benchmarks.ratio_intervals import least_pairs
from zerofleet.benchmarks.record import Alternation, Build, LoadAverage, Result, Series
from zerofleet.benchmarks.recovery import prepare_environment
from zerofleet.benchmarks.statistics import CONFIDENCE
from zerofleet.launch.config import JobConfig, load_job
from zerofleet.launch.environment import fingerprint
from zerofleet.launch.exit_codes import OK, RUN_FAILED
from zerofleet.trainer.errors import UserError

ARMS = ("A", "B")
"""The other checkout, this one."""
RECIPE = ROOT / "launch/recipes/quickstart.yaml"
QUIET = (
    *("checkpoint.interval_steps=0", "checkpoint.interval_s=0", "checkpoint.snapshot_interval_steps=0"),
    *("train.steps=1000000", "train.eval_interval_steps=0", "run.name=builds"),
)
"""Nothing but steps."""
WARM_UP_STEPS = 5
TURN_S = 0.5
"""Of a turn, at least: a step of a small model is over before the caches are its own again."""
_HOST = "127.0.0.1"
_LOG_TAIL_CHARACTERS = 3000
_END_TIMEOUT_S = 30


class BuildFailed(RuntimeError):
    """A build's process has ended too soon; the end of its log is the message."""


@dataclass
class Measured:
    """Of one arm."""

    step_s: list[float] = field(default_factory=list)
    """Mean step of each turn."""
    peak_bytes: list[float] = field(default_factory=list)
    """Resident memory of the largest rank, of each start."""
    losses: list[float] = field(default_factory=list)
    """Of the warm-up of the first start, nats per token."""


def package_of(checkout: Path, folder: Path) -> Path:
    """A folder for PYTHONPATH in which `zerofleet` is the checkout. Raises UserError when that is none."""
    if not (checkout / "trainer/loop.py").is_file():
        raise UserError(f"{checkout} is no checkout of zerofleet: there is no trainer/loop.py")
    folder.mkdir(parents=True)
    (folder / "zerofleet").symlink_to(checkout.resolve())
    return folder


class Side:
    """One build's ranks."""

    def __init__(self, arm: str, lines: list[Connection], processes: list[subprocess.Popen[bytes]], log: Path) -> None:
        self.arm, self.lines, self._processes, self._log = arm, lines, processes, log

    def turn(self, steps: int) -> list[dict[str, Any]]:
        """So many steps, as each rank saw them. Raises BuildFailed."""
        for line in self.lines:
            line.send(steps)
        return [self.receive(line) for line in self.lines]

    def receive(self, line: Connection) -> Any:
        """What a rank sends next. Raises BuildFailed when it ends before."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            return line.recv()
        raise self.failed()

    def failed(self) -> BuildFailed:
        return BuildFailed(f"build {self.arm} has ended:\n{self._log.read_text()[-_LOG_TAIL_CHARACTERS:]}")

    def accept(self, listener: Listener, count: int) -> None:
        """The lines of its ranks, by rank. Raises BuildFailed when one ends before it has called."""
        entrance = listener._listener._socket  # type: ignore[attr-defined]
        found: dict[int, Connection] = {}
        while len(found) < count:
            while not wait([entrance], timeout=1):
                if any(process.poll() is not None for process in self._processes):
                    raise self.failed()
            line = listener.accept()
            arm, rank = line.recv()
            assert arm == self.arm
            found[rank] = line
        self.lines.extend(found[rank] for rank in range(count))

    def close(self) -> None:
        """A closed line says that there are no more turns."""
        for line in self.lines:
            line.close()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_TIMEOUT_S)
            process.kill()
            process.wait()


@contextlib.contextmanager
def sides(
    job: JobConfig, recipe: Path, overrides: Sequence[str], packages: dict[str, Path], root: Path
) -> Iterator[dict[str, Side]]:
    """Both builds, built and waiting; at the end all of their processes have ended. Raises BuildFailed."""
    found: dict[str, Side] = {}
    with contextlib.ExitStack() as stack, Listener(str(root / "turns"), "AF_UNIX") as listener:
        for arm, package in packages.items():
            settings = [*overrides, *QUIET, f"run.storage={root / arm}"]
            log = root / f"{arm}.log"
            side = found[arm] = Side(
                arm, [], _started(job, [str(root / "turns"), arm, str(recipe), settings], package, log), log
            )
            stack.callback(side.close)
            side.accept(listener, job.cluster.ranks_per_node)
            first, *others = side.lines
            first.send(None)
            cache = side.receive(first)
            for line in others:
                line.send(cache)
            for line in side.lines:
                side.receive(line)  # it is ready
        yield found


def _started(job: JobConfig, arguments: list[Any], package: Path, log: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    count, threads = job.cluster.ranks_per_node, max(1, int(job.cluster.cpus_per_rank))
    started = []
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        where = {"MASTER_ADDR": _HOST, "MASTER_PORT": port, "PYTHONPATH": package, "OMP_NUM_THREADS": threads}
        environment = {**os.environ, **{name: str(value) for name, value in {**place, **where}.items()}}
        command = [sys.executable, "-P", builds_rank.__file__, json.dumps([*arguments, threads])]
        with log.open("ab") as output:
            started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
    return started


def measure(
    recipe: Path,
    overrides: Sequence[str],
    checkouts: dict[str, Path],
    starts: int,
    pairs: int,
    draw: random.Random,
    root: Path,
) -> dict[str, Measured]:
    """Turns of both builds. Raises BuildFailed, UserError."""
    job = load_job(recipe, overrides)
    if job.cluster.nodes > 1 or job.silos is not None:
        raise UserError(
            "builds are compared on one machine, without silos: set cluster.nodes=1, or choose another recipe"
        )
    packages = {arm: package_of(checkout, root / f"package-{arm}") for arm, checkout in checkouts.items()}
    found = {arm: Measured() for arm in checkouts}
    for start in range(starts):
        folder = root / str(start)
        folder.mkdir()
        with sides(job, recipe, overrides, dict(draw.sample(sorted(packages.items()), len(packages))), folder) as both:
            steps = 0
            for arm, side in both.items():
                warm = side.turn(WARM_UP_STEPS)
                found[arm].losses = found[arm].losses or warm[0]["losses"]
                usual = side.turn(WARM_UP_STEPS)[0]["seconds"] / WARM_UP_STEPS
                steps = max(steps, round(TURN_S / usual + 0.5))
            for _ in range(pairs):
                for arm in draw.sample(sorted(both), len(both)):
                    found[arm].step_s.append(max(turn["seconds"] for turn in both[arm].turn(steps)) / steps)
            for arm, side in both.items():
                found[arm].peak_bytes.append(float(max(turn["peak_bytes"] for turn in side.turn(1))))
        sys.stderr.write(f"start {start + 1} of {starts}: {_medians(found)}\n")
    return found


def _medians(found: dict[str, Measured]) -> str:
    return ", ".join(f"{arm} {statistics.median(each.step_s):.4f} s a step" for arm, each in found.items())


def results(
    found: dict[str, Measured],
    builds: dict[str, Build],
    command: list[str],
    started: datetime,
    before: tuple[float, float, float],
    duration_s: float,
) -> dict[str, Result]:
    """In the form of all results; a session of their own says that they took turns."""
    environment, session = fingerprint(), uuid.uuid4().hex
    del environment["load_average"]
    return {
        arm: Result(
            benchmark="builds",
            command=command,
            build=builds[arm],
            environment=environment,
            load_average=LoadAverage(before=before, after=os.getloadavg()),
            started_at=f"{started:%Y-%m-%dT%H:%M:%SZ}",
            duration_s=duration_s,
            exit_code=0,
            alternation=Alternation(session=session, arm=arm),
            series=[
                Series.of("step", "s", "lower", each.step_s),
                Series.of("resident memory of the largest rank", "bytes", None, each.peak_bytes),
            ],
            measured={"warm_up_losses": each.losses},
        )
        for arm, each in found.items()
    }


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0, 1 where this build is slower or one of the two does not train, 2 for the user's mistake."""
    parser = argparse.ArgumentParser(
        prog="zerofleet bench builds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "other", type=Path, metavar="CHECKOUT", help="the build to compare with: `git worktree add ../before COMMIT`"
    )
    parser.add_argument(
        "recipe", type=Path, nargs="?", default=RECIPE, metavar="RECIPE", help="default: the quickstart's"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="that both builds know")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=20, help="of turns, in each start")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--output", type=Path, metavar="PREFIX", help="of the two files")
    given = parser.parse_args(list(arguments))
    if given.starts < 1 or given.starts * given.pairs < (least := least_pairs(CONFIDENCE)):
        parser.error(
            f"--starts {given.starts} --pairs {given.pairs}: fewer than {least} pairs have no interval of {CONFIDENCE:.0%}"
        )
    started, before, began = datetime.now(UTC), os.getloadavg(), time.monotonic()
    prefix = given.output or Path(f"{started:%Y-%m-%d-%H%M%S}-builds")
    if not prefix.absolute().parent.is_dir():
        raise UserError(f"{prefix.absolute().parent} is no folder: --output names files in one")
    prepare_environment()
    checkouts = dict(zip(ARMS, (given.other.absolute(), ROOT), strict=True))
    root = Path(tempfile.mkdtemp(prefix="zf-builds-", dir="/var/tmp"))
    try:
        found = measure(
            given.recipe, given.overrides, checkouts, given.starts, given.pairs, random.Random(given.seed), root
        )
    except BuildFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return RUN_FAILED
    finally:
        shutil.rmtree(root, ignore_errors=True)
    builds = {arm: build_of(checkout) for arm, checkout in checkouts.items()}
    command = [given.recipe.name, *given.overrides, f"--starts={given.starts}", f"--pairs={given.pairs}"]
    made = results(found, builds, command, started, before, time.monotonic() - began)
    for arm, result in made.items():
        path = prefix.with_name(f"{prefix.name}-{arm}.json")
        result.write(path)
        sys.stdout.write(f"{arm}: {checkouts[arm]} ({builds[arm].commit or builds[arm].version}), {path}\n")
    if found["A"].losses != found["B"].losses:
        sys.stdout.write(f"the first losses differ: {found['A'].losses} and {found['B'].losses}\n")
    findings = compare(made["A"], made["B"])
    sys.stdout.write(text_of(findings))
    return RUN_FAILED if any(each.is_worse for each in findings) else OK
