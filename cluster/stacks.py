"""The Python stacks of a node's ranks, without their help: what to do about a hang depends on who waits for whom.

Each rank has faulthandler write all its stacks to a file when it gets SIGNAL; the handler is C and runs wherever the rank is,
also in a collective that never returns. The file lies in memory, so that a full disk is no hindrance, and ends with its process.
The agent finds it under /proc. Of a rank that cannot run a handler (stopped, or waiting for a device) the kernel's account is all.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zerofleet.cluster.host import process_state

SIGNAL = signal.SIGUSR2
_NAME = "zerofleet-stacks-"
"""Of the file in memory; the main thread's identity follows."""
_LOOK_S = 0.01
"""A file that another process writes has no event to wait for on every file system; a dump takes about a millisecond."""
_STATES_WITHOUT_HANDLERS = ("T", "t", "Z", "X", "")
_INNERMOST = 6
"""Frames that may lie between a collective's call and the thread's innermost: wrappers, loggers, asserts."""

_SECTION = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line \d+ in (?P<function>.+)$', re.MULTILINE)
_COLLECTIVE_FILES = ("/torch/distributed/", "/deepspeed/comm/", "/trainer/exchange.py")
_WAITS = (("/deepspeed/", "wait"), ("/cluster/rank.py", "_await_rank_zero"))
"""(part of the path, function) of those that wait for other ranks elsewhere: ZeRO-3 waits for a handle it got before."""


@dataclass(frozen=True)
class RankStack:
    """What one rank was doing."""

    state: str
    """The kernel's letter for its process, as host.process_state gives it; empty when it was gone."""
    text: str
    """Its Python threads, the main thread first and each thread's innermost frame first; else what the kernel says."""
    is_in_collective: bool | None = None
    """Whether a thread waits for other ranks; None when its Python stack is not known. On a GPU a rank waits for the device instead,
    wherever it next needs a number: there False is no proof."""

    @property
    def innermost(self) -> str:
        """`file:line function` of the main thread's innermost frame; empty when unknown."""
        found = (
            re.search(r'File "([^"]*)", line (\d+) in (.+)', self.text) if self.is_in_collective is not None else None
        )
        return f"{found[1]}:{found[2]} {found[3]}" if found else ""


def enable_dumps() -> None:
    """To be called by a rank, in its main thread: from here on `dump_stacks` can ask for its stacks."""
    signal.signal(SIGNAL, signal.SIG_IGN)  # by default it would end a rank that has no handler yet
    descriptor = os.memfd_create(f"{_NAME}{threading.main_thread().ident:x}")
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)  # whoever reads it empties it first
    faulthandler.register(SIGNAL, file=descriptor, all_threads=True)


def dump_stacks(pids: Mapping[int, int], timeout_s: float) -> dict[int, RankStack]:
    """The stacks of processes, by rank; returns within `timeout_s` and has something to say about each of `pids`."""
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as opened:
        dumps = {rank: _Dump(pid) for rank, pid in pids.items()}
        for dump in dumps.values():
            opened.callback(dump.close)
            dump.ask()
        waiting = list(dumps.values())
        while (waiting := [dump for dump in waiting if not dump.is_complete()]) and time.monotonic() < deadline:
            time.sleep(min(_LOOK_S, max(0.0, deadline - time.monotonic())))
        return {rank: dump.result() for rank, dump in dumps.items()}


def is_in_collective(text: str) -> bool:
    """Whether any thread of a dump waits for other ranks: on a GPU, backward's collectives have a thread of their own."""
    return any(map(_waits_for_others, _sections(text).values()))


def _waits_for_others(section: str) -> bool:
    frames = [(match["file"], match["function"]) for match in _FRAME.finditer(section)][:_INNERMOST]
    return any(
        any(part in file for part in _COLLECTIVE_FILES)
        or any(part in file and function == name for part, name in _WAITS)
        for file, function in frames
    )


def _sections(text: str) -> dict[int, str]:
    """Each thread's part of a dump, by the thread's identity, in the order of the dump: the main thread comes last."""
    found = [(match, match.start()) for match in _SECTION.finditer(text)]
    ends = [start for _, start in found[1:]] + [len(text)]
    return {int(match[1], 16): text[start:end].strip() for (match, start), end in zip(found, ends, strict=False)}


class _Process:
    """A handle that never means another process, also when this one's number is given away. Raises OSError when it has ended."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._descriptor, number)

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass
class _Dump:
    """One process that is asked for its stacks."""

    pid: int
    _file: int | None = None
    _main_thread: int = 0
    _size: int = 0
    _is_done: bool = False

    def ask(self) -> None:
        """A process that has no dump file is none of ours, whatever its number: it is left alone."""
        self._is_done = True
        with contextlib.suppress(OSError), contextlib.closing(_Process(self.pid)) as process:  # it may have ended
            if process_state(self.pid) not in _STATES_WITHOUT_HANDLERS and self._open():
                process.send(SIGNAL)
                self._is_done = False

    def _open(self) -> bool:
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # a descriptor that was closed meanwhile
                _, found, identity = str(entry.readlink()).partition(f"/memfd:{_NAME}")
                if found:
                    self._main_thread = int(identity.split()[0], 16)
                    self._file = os.open(entry, os.O_RDWR)
                    os.ftruncate(self._file, 0)
                    return True
        return False

    def is_complete(self) -> bool:
        """Whether nothing more is to be expected. The main thread is written last and its innermost frames first, so that a dump in
        which it has been begun and that no longer grows tells what is asked."""
        if self._is_done:
            return True
        text = self._read()
        grew, self._size = len(text) != self._size, len(text)
        section = _sections(text).get(self._main_thread, "")
        self._is_done = not grew and bool(_FRAME.search(section))
        return self._is_done

    def _read(self) -> str:
        if self._file is None:
            return ""
        return os.pread(self._file, os.fstat(self._file).st_size, 0).decode(errors="replace")

    def result(self) -> RankStack:
        state, sections = process_state(self.pid), _sections(self._read())
        if not _FRAME.search(sections.get(self._main_thread, "")):
            return RankStack(state, _kernel_account(self.pid))
        text = "\n\n".join([sections.pop(self._main_thread), *sections.values()])
        return RankStack(state, text, is_in_collective(text))

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _kernel_account(pid: int) -> str:
    """State, and where in the kernel the main thread waits, as far as this user may know. None of these reads waits for the process."""
    lines = []
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        lines += [line.replace("\t", " ") for line in status if line.startswith("State:")]
    for name in ("wchan", "stack"):
        with contextlib.suppress(OSError):
            found = Path(f"/proc/{pid}/{name}").read_text().strip()
            lines += [f"{name}: {found}"] if found not in ("", "0") else []
    return "\n".join(lines) or "the process has ended"
