"""What a forked process does to be a rank: its log, its socket, the target function, its last words, its exit code."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zerofleet.cluster.binding import bind
from zerofleet.cluster.faults import FaultInjector, parse_faults
from zerofleet.cluster.spec import CHECK, TRAIN, RankSpec
from zerofleet.cluster.stacks import enable_dumps
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.credentials import mask_output
from zerofleet.trainer.errors import BadStep, CheckpointUnusable, SnapshotUnreachable, UserError, WrongArithmetic
from zerofleet.trainer.events import ACTIONS, Control, Event
from zerofleet.trainer.world import World

MAX_TRACEBACK_CHARS = 16_000
RANK_ZERO_TIMEOUT_S = 60.0
"""After this torch's own connect goes on trying, and says what is wrong."""


class AgentLink:
    """A rank's end of its socket to the node agent: events up, control down, one JSON line each."""

    def __init__(self, connection: socket.socket, world: World) -> None:
        self._socket, self._world = connection, world
        self._lock = threading.Lock()
        self._buffer = b""
        self._asked, self._settled_step, self._replicated_step = Control(), 0, 0
        self.step = 0
        """The newest step that was reported."""
        self.phase = "import"

    def report(self, event: Event) -> None:
        """Blocks while the agent is behind. Raises BrokenPipeError when it is gone."""
        self.step, self.phase = event.step, event.phase
        with self._lock:
            self._socket.sendall(event.to_json().encode() + b"\n")

    def control(self) -> Control:
        """The strongest request so far. A save is given out once; a stop stays."""
        while self._receive():
            pass
        asked = self._asked
        if asked.action == "save":
            self._asked = Control()
        return Control(asked.action, self._settled_step, self._replicated_step)

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            control = Control(**json.loads(line))
            assert control.action in ACTIONS
            self._settled_step = max(self._settled_step, control.settled_step)
            self._replicated_step = max(self._replicated_step, control.replicated_step)
            self._asked = max(self._asked, control, key=lambda c: c.code)
        return bool(data)

    def last_words(self, error: BaseException) -> None:
        """Reports the exception that ends the rank."""
        data: dict[str, Any] = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error))[-MAX_TRACEBACK_CHARS:],
            "frames": frames_of(error),
            "user": isinstance(error, UserError),
        }
        if isinstance(error, CheckpointUnusable):
            data["checkpoint"] = {"step": error.step, "attempt": error.attempt, "reason": error.reason}
        if isinstance(error, SnapshotUnreachable):
            data["unreachable"] = {"step": error.step, "attempt": error.attempt}
        if isinstance(error, WrongArithmetic):
            data["suspects"] = error.ranks
        if isinstance(error, BadStep):
            data["bad_step"] = {"step": error.step, "ranges": error.ranges, "loss": error.loss}
        self.report(
            Event("error", self._world.attempt, self._world.rank, self.step, self.phase, time.time(), data=data)
        )


def frames_of(error: BaseException) -> list[str]:
    """`file:line function` of each frame, outermost first: tells one traceback from another whatever its message."""
    return [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]


def run_rank(spec: RankSpec, connection: socket.socket, resolve: Callable[[str], Callable[..., Any]]) -> int:
    """Runs the target. Returns the exit code: 0 done, 1 an exception, 2 the user's mistake."""
    link = AgentLink(connection, spec.world)
    try:
        _redirect(Path(spec.log))
        mask_output()
        faulthandler.enable()  # a crash in C leaves its Python stack in the log
        enable_dumps()
        os.environ.update(spec.environment)
        link.report(Event("phase", spec.world.attempt, spec.world.rank, 0, "import", time.time()))
        if spec.job.bind_cores:  # before there are threads that would not be
            _bind(spec, link)
        _set_threads(spec.job.threads_per_rank)
        config = TrainConfig.model_validate_json(spec.job.config_json)
        fault = FaultInjector(parse_faults(spec.job.faults), spec.world.rank, spec.world.attempt)
        train = resolve(spec.job.target)
        if spec.job.target in (TRAIN, CHECK):  # which join a process group
            _await_rank_zero(spec.world, spec.environment)
        snapshots = Path(spec.snapshots) if spec.snapshots else None
        train(config, spec.world, Path(spec.job.cache_path), link.report, link.control, fault, snapshots)
        return 0
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank is reported, SystemExit included
        traceback.print_exception(error)
        link.last_words(error)
        return 2 if isinstance(error, UserError) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _redirect(log: Path) -> None:
    """stdout and stderr to the rank's log, line by line; stdin from nowhere."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.close(nothing)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _await_rank_zero(world: World, environment: Mapping[str, str]) -> None:
    """Until rank 0 listens. torch's own connect backs off for up to a second when it comes too early."""
    deadline = time.monotonic() + RANK_ZERO_TIMEOUT_S
    address = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
    while world.rank > 0 and time.monotonic() < deadline:
        try:
            socket.create_connection(address, timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.005)


def _bind(spec: RankSpec, link: AgentLink) -> None:
    """A rank that cannot be bound trains as it is, and the run is told why: by one of a node where it holds for all."""
    found = bind(spec.world.local_rank, spec.ranks_of_node, spec.job.threads_per_rank)
    if found.cores:
        sys.stdout.write(f"bound to cores {', '.join(map(str, found.cores))}\n")
        return
    who = (
        f"all ranks on {spec.world.node_name} are"
        if found.is_of_node
        else f"rank {spec.world.rank} on {spec.world.node_name} is"
    )
    message = f"{who} bound to no cores, as cluster.bind_cores asks for: {found.why_not}"
    sys.stdout.write(f"{message}\n")
    if spec.world.local_rank == 0 or not found.is_of_node:
        data = {"class": "node", "message": message}
        link.report(Event("incident", spec.world.attempt, spec.world.rank, 0, "import", time.time(), data=data))


def _set_threads(num_threads: int) -> None:
    """torch reads OMP_NUM_THREADS once, in the zygote: here its pool is sized for this rank."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(num_threads)
