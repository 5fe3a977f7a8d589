"""Parts of a corpus tokenised by several processes of this host, or by this one. What they write does not depend on how many there are.

A process takes the largest part that is left whenever it is free. Its parts appear whole or not at all (`parts.py`), so any of them can be killed
at any time. All hold the cache's lock: who prepares next waits until the last of them has gone, and the kernel ends them with their
parent.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import BinaryIO

from zerofleet.trainer.data.parts import Part, Work, tokenise_part
from zerofleet.trainer.data.tokenizer import Encoder
from zerofleet.trainer.errors import ZerofleetError

BYTES_PER_PROCESS = 16 * 1024 * 1024
"""A process is started for each such piece of the corpus, up to the number of cores; it costs half a second."""
_MODULE = "zerofleet.trainer.data.tokenise"
_Process = subprocess.Popen[bytes]


class ProcessLost(ZerofleetError):
    """A process that tokenised has ended before its work was done."""


def num_processes(parts: Sequence[Part], cores: int) -> int:
    """How many processes are worth their start."""
    worth = sum(part.num_bytes for part in parts) // BYTES_PER_PROCESS
    return max(1, min(cores, len(parts), worth))


def tokenise_parts(parts: Sequence[Part], work: Work, lock: BinaryIO, advance: Callable[[int], None]) -> None:
    """Writes all parts. `advance` is told the bytes read by all processes together.

    Raises what a process raised, the first one that did; the others are ended.
    """
    cores = len(os.sched_getaffinity(0))
    count = num_processes(parts, cores)
    if count == 1:
        _tokenise_here(parts, work, advance)
    else:
        with _processes(count, max(1, cores // count), lock) as processes:
            _deal(parts, work, processes, advance)


def _tokenise_here(parts: Sequence[Part], work: Work, advance: Callable[[int], None]) -> None:
    encoder, before = Encoder(work.tokenizer), 0
    for part in parts:
        start = before
        tokenise_part(part, encoder, work, lambda read, start=start: advance(start + read))  # type: ignore[misc]
        before += part.num_bytes


def _deal(
    parts: Sequence[Part], work: Work, processes: Mapping[Connection, _Process], advance: Callable[[int], None]
) -> None:
    """Gives every process a part as long as there are any; returns when all are done."""
    waiting = sorted(range(len(parts)), key=lambda index: parts[index].num_bytes)
    read = [0] * len(parts)
    busy = list(processes)
    for connection in busy:
        with _losses(processes[connection]):
            connection.send((work, parts))
            connection.send(waiting.pop())
    while busy:
        ready = wait(busy)
        for connection in [connection for connection in busy if connection in ready]:
            with _losses(processes[connection]):
                answer = connection.recv()
            if isinstance(answer, Exception):
                raise answer
            index, num_bytes, is_done = answer
            read[index] = num_bytes
            advance(sum(read))
            if is_done and waiting:
                with _losses(processes[connection]):
                    connection.send(waiting.pop())
            elif is_done:
                busy.remove(connection)


@contextmanager
def _losses(process: _Process) -> Iterator[None]:
    """A connection that ends means that its process did."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        code = process.wait()
        how = (
            "was killed, most likely for memory (see the kernel's log)"
            if code == -signal.SIGKILL
            else f"ended with code {code}"
        )
        raise ProcessLost(
            f"a process that tokenises the corpus {how}: what is done is kept, and a next try goes on. Fewer cores (taskset) and a "
            "smaller data.max_document_bytes take less memory"
        ) from error


@contextmanager
def _processes(count: int, num_threads: int, lock: BinaryIO) -> Iterator[dict[Connection, _Process]]:
    """`count` new processes, which are gone when the block ends, however it does."""
    started: dict[Connection, _Process] = {}
    try:
        for _ in range(count):
            ours, theirs = socket.socketpair()
            with theirs:
                started[Connection(ours.detach())] = _start(theirs.fileno(), num_threads, lock)
        yield started
    finally:
        for connection, process in started.items():
            connection.close()
            process.kill()  # its files are whole or temporary, whenever it ends
            process.wait()


def _start(descriptor: int, num_threads: int, lock: BinaryIO) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),  # the user's functions too
        "RAYON_NUM_THREADS": str(num_threads),
        "TOKENIZERS_PARALLELISM": "true" if num_threads > 1 else "false",
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE, str(descriptor)],
        stdin=subprocess.DEVNULL,
        env=environment,
        pass_fds=(descriptor, lock.fileno()),
    )
