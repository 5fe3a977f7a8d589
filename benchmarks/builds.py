"""Two builds of zerofleet, this one and another checkout, whose steps take turns: is this one faster, slower, or can nobody tell?

    zerofleet bench builds ../before launch/recipes/quickstart.yaml train.precision=bf16 --output DATE-builds

Each build trains the same recipe without saves, in ranks of its own whose `zerofleet` is that checkout's; Python and all other packages are this one's. They live side by side and take turns
in an order that is drawn. Both are started anew several times, since where a process's memory happens to lie changes its steps for as long as it lives, by up to a percent: **one start is
one pair**, the medians of its turns. Both results go to files, DATE-builds-A.json (the other) and DATE-builds-B.json (this one), and to the comparison, whose answer is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

from zerofleet.benchmarks import builds_rank
from zerofleet.benchmarks.checkout import ROOT, build_of
from zerofleet.benchmarks.comparison import compare, text_of
from zerofleet.benchmarks.page import write_pages
from zerofleet.benchmarks.ratio_intervals import least_pairs
from zerofleet.benchmarks.record import Alternation, Build, LoadAverage, Result, Series
from zerofleet.benchmarks.recovery import prepare_environment
from zerofleet.benchmarks.statistics import CONFIDENCE
from zerofleet.launch.checks import check_job
from zerofleet.launch.config import JobConfig, load_job
from zerofleet.launch.environment import fingerprint
from zerofleet.launch.exit_codes import OK, RUN_FAILED
from zerofleet.trainer import ops
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.world import free_port

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
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_HOST = "127.0.0.1"
_LOG_TAIL_CHARACTERS = 3000
_LOOK_S = 1.0
"""Between looks whether the processes live."""
_END_TIMEOUT_S = 30


class BuildFailed(RuntimeError):
    """A build's process has ended too soon; the end of its log is the message."""


@dataclass
class Measured:
    """Of one arm, by start."""

    step_s: list[float] = field(default_factory=list)
    """Median over the turns of a turn's mean step."""
    peak_bytes: list[float] = field(default_factory=list)
    """Resident memory of the largest rank in the last turn."""
    turns: list[list[float]] = field(default_factory=list)
    """The mean step of each turn, in seconds."""
    losses: list[float] = field(default_factory=list)
    """Of the warm-up of the first start, nats per token."""


@dataclass(frozen=True)
class Order:
    """What the processes of a build are started with, but for their rank."""

    arguments: list[Any]
    package: Path
    log: Path

    def start(self, **place: object) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [str(self.package), os.environ.get("PYTHONPATH")]))
        own = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
        environment = {**own, "PYTHONPATH": path, **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, "-P", builds_rank.__file__, json.dumps(self.arguments)]
        with self.log.open("ab") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


class Side:
    """One build's processes. Everything raises BuildFailed when one of them has ended."""

    def __init__(self, arm: str, order: Order) -> None:
        self._arm, self._order = arm, order
        self._lines: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def prepare(self) -> None:
        """In a process of its own: ranks that were to be measured would carry its memory."""
        self._processes = [self._order.start()]
        if self._processes[0].wait():
            raise self._failed()

    def start(self, listener: Listener, num_ranks: int, num_threads: int) -> None:
        """Returns when all is built."""
        where = {"MASTER_ADDR": _HOST, "MASTER_PORT": free_port(), "OMP_NUM_THREADS": num_threads}
        self._processes = []
        for rank in range(num_ranks):  # one by one: what a signal ends in between is ended with the others
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
            self._processes.append(self._order.start(**place, **where))
        entrance = listener._listener._socket  # type: ignore[attr-defined]
        found: dict[int, Connection] = {}
        while len(found) < num_ranks:
            self._wait(entrance)
            line = listener.accept()
            arm, rank = self._receive(line)
            assert arm == self._arm
            found[rank] = line
        self._lines = [found[rank] for rank in range(num_ranks)]
        for line in self._lines:
            self._receive(line)

    def turn(self, steps: int) -> list[dict[str, Any]]:
        """So many steps, as each rank saw them."""
        try:
            for line in self._lines:
                line.send(steps)
        except OSError:
            raise self._failed() from None
        return [self._receive(line) for line in self._lines]

    def _receive(self, line: Connection) -> Any:
        self._wait(line)
        try:
            return line.recv()
        except (EOFError, OSError):
            raise self._failed() from None

    def _wait(self, something: Any) -> None:
        while not wait([something], timeout=_LOOK_S):
            if any(process.poll() is not None for process in self._processes):
                raise self._failed()

    def _failed(self) -> BuildFailed:
        said = self._order.log.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
        return BuildFailed(f"build {self._arm} has ended:\n{said}")

    def close(self) -> None:
        """A closed line says that there are no more turns."""
        for line in self._lines:
            line.close()
        deadline = time.monotonic() + (_END_TIMEOUT_S if self._lines else 0)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()


def package_of(checkout: Path, folder: Path) -> Path:
    """A folder for PYTHONPATH in which `zerofleet` is the checkout. Raises UserError when that is none."""
    if not (checkout / "trainer/loop.py").is_file():
        raise UserError(f"{checkout} is no checkout of zerofleet: there is no trainer/loop.py")
    folder.mkdir(parents=True)
    (folder / "zerofleet").symlink_to(checkout.resolve())
    return folder


def checked_job(recipe: Path, overrides: Sequence[str]) -> JobConfig:
    """Raises UserError for a job whose steps cannot be compared so."""
    job = load_job(recipe, [*overrides, *QUIET])
    check_job(job)
    if job.cluster.nodes > 1 or job.silos is not None or job.cluster.gpus_per_rank or job.cluster.bind_cores:
        raise UserError(
            "builds are compared on CPUs of one machine, without silos and unbound: set cluster.nodes=1, cluster.gpus_per_rank=0 and "
            "cluster.bind_cores=false, or choose another recipe"
        )
    if not ops.is_built(ops.COMMUNICATION_OP):
        raise UserError(f"{ops.COMMUNICATION_OP} is not built: run `python -m zerofleet.trainer.ops` first")
    return job


@contextlib.contextmanager
def sides(job: JobConfig, orders: Mapping[str, Order], address: Path) -> Iterator[dict[str, Side]]:
    """Both builds, built one after the other and waiting; at the end all of their processes have ended."""
    found = {arm: Side(arm, order) for arm, order in orders.items()}
    with contextlib.ExitStack() as stack, Listener(str(address), "AF_UNIX") as listener:
        for side in found.values():
            stack.callback(side.close)
            side.prepare()
            side.start(listener, job.cluster.ranks_per_node, max(1, int(job.cluster.cpus_per_rank)))
        yield found


def measure(
    job: JobConfig,
    recipe: Path,
    overrides: Sequence[str],
    packages: Mapping[str, Path],
    starts: int,
    turns: int,
    draw: random.Random,
    root: Path,
) -> dict[str, Measured]:
    """Both builds, so many starts of so many turns. Raises BuildFailed."""
    found = {arm: Measured() for arm in packages}
    ranks = [job.cluster.ranks_per_node, max(1, int(job.cluster.cpus_per_rank))]
    for start in range(starts):
        folder = root / str(start)
        folder.mkdir()
        orders = {}
        for arm in draw.sample(sorted(packages), len(packages)):
            settings = [*overrides, *QUIET, f"run.storage={folder / arm}"]
            arguments = [str(folder / "turns"), arm, str(recipe), settings, *ranks, str(folder / f"prepared-{arm}")]
            orders[arm] = Order(arguments, packages[arm], folder / f"{arm}.log")
        with sides(job, orders, folder / "turns") as both:
            take_turns(both, found, turns, draw)
        shutil.rmtree(folder)
        sys.stderr.write(f"start {start + 1} of {starts}: {_last(found)}\n")
    return found


def take_turns(both: Mapping[str, Side], found: Mapping[str, Measured], turns: int, draw: random.Random) -> None:
    """Of one start."""
    usual_s = float("inf")
    for arm, side in both.items():
        losses = side.turn(WARM_UP_STEPS)[0]["losses"]
        found[arm].losses = found[arm].losses or losses
        usual_s = min(usual_s, side.turn(WARM_UP_STEPS)[0]["seconds"] / WARM_UP_STEPS)
    steps = max(1, round(TURN_S / usual_s + 0.5))
    taken: dict[str, list[float]] = {arm: [] for arm in both}
    last: dict[str, list[dict[str, Any]]] = {}
    for _ in range(turns):
        for arm in draw.sample(sorted(both), len(both)):
            last[arm] = both[arm].turn(steps)
            taken[arm].append(max(turn["seconds"] for turn in last[arm]) / steps)
    for arm, values in taken.items():
        found[arm].turns.append(values)
        found[arm].step_s.append(statistics.median(values))
        found[arm].peak_bytes.append(float(max(turn["peak_bytes"] for turn in last[arm])))


def _last(found: Mapping[str, Measured]) -> str:
    return ", ".join(f"{arm} {each.step_s[-1]:.4f} s a step" for arm, each in found.items())


def results(
    found: Mapping[str, Measured],
    builds: Mapping[str, Build],
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
            measured={"turns": each.turns, "warm_up_losses": each.losses},
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
    parser.add_argument("--starts", type=int, default=8, help="of both builds, each one a pair")
    parser.add_argument("--turns", type=int, default=6, help="of each build in a start")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--output", type=Path, metavar="PREFIX", help="of the two files")
    given = parser.parse_args(list(arguments))
    if given.starts < (least := least_pairs(CONFIDENCE)) or given.turns < 1:
        parser.error(
            f"--starts {given.starts} --turns {given.turns}: fewer than {least} starts have no interval of {CONFIDENCE:.0%}"
        )
    started, before, began = datetime.now(UTC), os.getloadavg(), time.monotonic()
    prefix = given.output or Path(f"{started:%Y-%m-%d-%H%M%S}-builds")
    if not prefix.absolute().parent.is_dir():
        raise UserError(f"{prefix.absolute().parent} is no folder: --output names files in one")
    job, checkouts = (
        checked_job(given.recipe, given.overrides),
        dict(zip(ARMS, (given.other.absolute(), ROOT), strict=True)),
    )
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the ranks are ended
    root = Path(tempfile.mkdtemp(prefix="zf-builds-", dir="/var/tmp"))
    try:
        packages = {arm: package_of(checkout, root / f"package-{arm}") for arm, checkout in checkouts.items()}
        builds = {arm: build_of(checkout) for arm, checkout in checkouts.items()}
        prepare_environment()
        found = measure(
            job,
            given.recipe.absolute(),
            given.overrides,
            packages,
            given.starts,
            given.turns,
            random.Random(given.seed),
            root,
        )
    except BuildFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return RUN_FAILED
    finally:
        shutil.rmtree(root, ignore_errors=True)
    command = [given.recipe.name, *given.overrides, f"--starts={given.starts}", f"--turns={given.turns}"]
    made = results(found, builds, command, started, before, time.monotonic() - began)
    for arm, result in made.items():
        path = prefix.with_name(f"{prefix.name}-{arm}.json")
        result.write(path)
        write_pages(result, path)
        sys.stdout.write(f"{arm}: {checkouts[arm]} ({builds[arm].commit or builds[arm].version}), {path}\n")
    if found["A"].losses != found["B"].losses:
        sys.stdout.write(f"the first losses differ: {found['A'].losses} and {found['B'].losses}\n")
    findings = compare(made["A"], made["B"])
    sys.stdout.write(text_of(findings))
    return RUN_FAILED if any(each.is_worse for each in findings) else OK
