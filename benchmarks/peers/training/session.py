"""Systems that live side by side, each in processes of its own, and take turns.

Each system has its own ranks, so that none profits from what another one sets for its process (allocator, threads, caches of compiled code), and all
but Ray Train's are forked from one process that has imported everything. While one system has its turn the others wait in a read.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

from zerofleet.benchmarks.peers.training.task import WORLD_SIZE, Task
from zerofleet.benchmarks.peers.training.turns import Finished, Turn, Turns
from zerofleet.trainer.world import free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["zerofleet.benchmarks.peers.training.preload"])

_HOST = "127.0.0.1"
_PACKAGE = "zerofleet.benchmarks.peers.training"
LOOPS = {
    "zerofleet": ("zerofleet_loop", "train"),
    "deepspeed": ("deepspeed_loop", "train"),
    "ray_train": ("ray_loop", "main"),
    "hf_trainer": ("hf_trainer", "train"),
    "accelerate": ("accelerate_loop", "train"),
    "ddp": ("torch_native", "train_ddp"),
    "fsdp2": ("torch_native", "train_fsdp2"),
}
"""By system, module and function."""
_LOG_TAIL_CHARACTERS = 3000


class SystemFailed(RuntimeError):
    """A system's process has ended too soon; the end of its log is the message."""


class Session:
    """Systems that are built and wait for their turns."""

    def __init__(self, lines: dict[str, list[Connection]], processes: dict[str, list[Any]], logs: Path) -> None:
        self._lines, self._processes, self._logs = lines, processes, logs
        self.failed: dict[str, str] = {}
        """Systems that did not come up, and what they said."""

    def turn(self, system: str, steps: int) -> list[Turn]:
        """So many steps of a system, as each of its ranks saw them."""
        for line in self._lines[system]:
            line.send(steps)
        return [self.receive(system, line) for line in self._lines[system]]

    def receive(self, system: str, line: Connection) -> Any:
        """What a rank sends next. Raises SystemFailed when a process of its system ends before."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            if line in wait([line, *(process.sentinel for process in self._processes[system])]):
                return line.recv()
        raise SystemFailed(f"{system} has ended:\n{log_tail(self._logs, system)}")


def log_tail(logs: Path, system: str) -> str:
    return "\n".join(path.read_text()[-_LOG_TAIL_CHARACTERS:] for path in sorted(logs.glob(f"{system}-*.log")))


@contextlib.contextmanager
def session(task: Task, systems: Sequence[str], logs: Path) -> Iterator[Session]:
    """Builds the systems one after the other; at the end all of their processes have ended."""
    logs.mkdir(parents=True)
    address = str(logs / "turns")
    lines: dict[str, list[Connection]] = {}
    processes: dict[str, list[Any]] = {}
    found = Session(lines, processes, logs)
    with Listener(address, "AF_UNIX") as listener:
        try:
            for system in systems:
                processes[system] = _start(task, system, address, logs)
                try:
                    lines[system] = _connected(listener, system, processes[system], logs)
                    for line in lines[system]:
                        found.receive(system, line)  # it is ready
                except SystemFailed as error:
                    found.failed[system] = str(error)
                    _close(lines.pop(system, []), processes.pop(system))
            yield found
        finally:
            for system, started in processes.items():
                _close(lines.get(system, []), started)


def _start(task: Task, system: str, address: str, logs: Path) -> list[Any]:
    if system == "ray_train":
        started = [CONTEXT.Process(target=_run_ray, args=(task, address, logs))]
    else:
        port = str(free_port())
        started = [
            CONTEXT.Process(target=_run_rank, args=(task, system, rank, port, address, logs))
            for rank in range(WORLD_SIZE)
        ]
    for process in started:
        process.start()
    return started


def _connected(listener: Listener, system: str, processes: list[Any], logs: Path) -> list[Connection]:
    """The lines of a system's ranks, by rank."""
    found: dict[int, Connection] = {}
    entrance = listener._listener._socket  # type: ignore[attr-defined]
    while len(found) < WORLD_SIZE:
        if entrance not in wait([entrance, *(process.sentinel for process in processes)]):
            raise SystemFailed(f"{system} has ended:\n{log_tail(logs, system)}")
        line = listener.accept()
        name, rank = line.recv()
        assert name == system
        found[rank] = line
    return [found[rank] for rank in range(WORLD_SIZE)]


def _close(lines: list[Connection], processes: list[Any]) -> None:
    """Ends a system: a closed line says that there are no more turns."""
    for line in lines:
        line.close()
    for process in processes:
        for stop in (lambda: None, process.terminate, process.kill):
            stop()
            process.join(30)
            if process.exitcode is not None:
                break


def _run_rank(task: Task, system: str, rank: int, port: str, address: str, logs: Path) -> None:
    import torch

    _log_to(logs / f"{system}-{rank}.log")
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD_SIZE, "LOCAL_WORLD_SIZE": WORLD_SIZE}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR=_HOST, MASTER_PORT=port)
    torch.set_num_threads(1)
    module, name = LOOPS[system]
    with contextlib.suppress(Finished):
        getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)(task, Turns(address, system, rank))


def _run_ray(task: Task, address: str, logs: Path) -> None:
    _log_to(logs / "ray_train-driver.log")
    from zerofleet.benchmarks.peers.training.ray_loop import main

    main(task.to_json(), address)


def _log_to(path: Path) -> None:
    """Everything that this process and those that it starts say."""
    with path.open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
