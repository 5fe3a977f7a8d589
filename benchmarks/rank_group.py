"""Ranks of a job with a helper beside them, as plain processes: what rank 0 measures comes back as a value."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.world import World, free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["zerofleet.benchmarks.preload"])

HOST = "127.0.0.1"


class RankFailed(RuntimeError):
    """A rank or the helper ended before it was done; its traceback is the message, where it left one."""


@dataclass(frozen=True)
class Group:
    """A rank's place in the group, and its line to the helper."""

    config: TrainConfig
    cache: Path
    world: World
    helper: Connection


Work = Callable[..., Any]
"""`work(group, *arguments)` on every rank; picklable. What rank 0 returns is the group's result."""
Helper = Callable[[TrainConfig, list[Connection]], None]
"""Serves the ranks' connections, rank 0's first, until all are closed; picklable."""


def run_group(
    config: TrainConfig, cache: Path, world_size: int, attempt: int, helper: Helper, work: Work, *arguments: Any
) -> Any:
    """Runs `work` on every rank of an attempt that is claimed already. Raises RankFailed, after it has ended all processes."""
    port = free_port()
    pipes = [CONTEXT.Pipe() for _ in range(world_size)]
    results, result_sender = CONTEXT.Pipe(duplex=False)
    processes = [CONTEXT.Process(target=_help, args=(helper, config, [theirs for _, theirs in pipes], result_sender))]
    for rank, (ours, _) in enumerate(pipes):
        group = Group(config, cache, World(rank, rank, 0, world_size, socket.gethostname(), attempt), ours)
        processes.append(CONTEXT.Process(target=_rank, args=(work, group, port, result_sender, arguments)))
    for process in processes:
        process.start()
    for end in [result_sender, *(end for pipe in pipes for end in pipe)]:
        end.close()  # so that the processes' own are the last, and an end of file says that they have gone
    try:
        is_done, value = results.recv()
    except EOFError:
        is_done, value = False, "a process was killed"
    for process in processes:
        if not is_done:
            process.kill()
        process.join()
    if not is_done:
        raise RankFailed(value)
    return value


def _rank(work: Work, group: Group, port: int, results: Connection, arguments: tuple[Any, ...]) -> None:
    os.environ.update(group.world.env(HOST, port), OMP_NUM_THREADS="1")
    try:
        value = work(group, *arguments)
    except BaseException:
        results.send((False, f"rank {group.world.rank}: {traceback.format_exc()}"))
        raise
    if group.world.rank == 0:
        results.send((True, value))
    group.helper.close()


def _help(helper: Helper, config: TrainConfig, connections: list[Connection], results: Connection) -> None:
    try:
        helper(config, connections)
    except BaseException:
        results.send((False, f"the helper: {traceback.format_exc()}"))
        raise


def requests(connections: list[Connection]) -> Any:
    """What the ranks send, as it comes, until all have closed their ends: pairs of a connection and a value."""
    living = list(connections)
    while living:
        for connection in wait(living):
            assert isinstance(connection, Connection)
            try:
                yield connection, connection.recv()
            except EOFError:
                living.remove(connection)
