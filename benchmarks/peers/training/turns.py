"""How a rank takes its turns: it trains in whatever way its system does, says after every step that one is done, and waits there.

Nothing is measured while another system's turn is on, and a turn includes all that its system does from one step's end to the next: fetching
data, logging, schedules.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection

import torch.distributed as dist


class Finished(Exception):
    """There are no more turns."""


@dataclass(frozen=True)
class Turn:
    """Some steps of one rank."""

    seconds: float
    """From a barrier of the system's ranks to another."""
    processor_seconds: float
    """Of this process, all its threads."""
    losses: list[float]
    """Of each step, nats per token: this rank's own mean, or that of all ranks where the system says so by itself."""


class Turns:
    """A rank's line to whoever deals turns. `address` is the socket that he listens at."""

    def __init__(self, address: str, system: str, rank: int) -> None:
        self._line: Connection = Client(address, "AF_UNIX")
        self._line.send((system, rank))

    def ready(self) -> None:
        """Everything is built. Returns when the first turn begins."""
        self._line.send(None)
        self._wait()

    def done(self, loss: float) -> None:
        """A step is done. Returns when the next one is wanted; raises Finished when none is."""
        self._losses.append(loss)
        if len(self._losses) < self._steps:
            return
        dist.barrier()
        seconds, processor_seconds = time.perf_counter() - self._start, time.process_time() - self._processor_start
        self._line.send(Turn(seconds, processor_seconds, self._losses))
        self._wait()

    def _wait(self) -> None:
        try:
            self._steps = self._line.recv()
        except EOFError:
            raise Finished from None
        self._losses: list[float] = []
        dist.barrier()
        self._start, self._processor_start = time.perf_counter(), time.process_time()
