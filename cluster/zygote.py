"""The process that ranks are forked from: it has imported everything, holds no lock and has one thread.

`python -m zerofleet.cluster.zygote ADDRESS PRELOAD MODEL_TYPE PARENT` with ADDRESS one end of a Unix SOCK_SEQPACKET pair
(its number), or a path to wait at for agents: each that calls is given a fork of its own, so that an agent which follows a dead one
need not import everything again. Messages are JSON objects with `op`. Down: `fork` (a RankSpec, with the rank's socket as
SCM_RIGHTS), `kill` (SIGKILL to all children). Up: `note` (message), `ready` (pid, seconds of the imports), `forked` (rank, pid),
`exit` (rank, code, signal). The zygote alone reaps its children, so a kill can never hit a stranger that got a dead rank's number.
It ends when its socket closes or its parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from zerofleet.cluster.rank import run_rank
from zerofleet.cluster.spec import RankSpec

MESSAGE_BYTES = 160 * 1024
"""Largest message: it must fit in a socket's send buffer, which Linux limits to 208 KiB unless told otherwise."""
_PR_SET_PDEATHSIG = 1


def resolve(dotted: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = dotted.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def die_with_parent(parent: int) -> None:
    """SIGKILL when the parent dies, also when it died before this call."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


class Zygote:
    """Serves fork requests until its socket closes."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._ranks: dict[int, int] = {}
        """pid -> rank of the children that have not been reaped."""
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._waker)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._agent, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake in ready:
                    self._reap()
                if self._agent in ready and not self._receive():
                    self._kill()
                    return

    def _receive(self) -> bool:
        """One message. False when the agent has closed."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._agent, MESSAGE_BYTES, 1)
        except ConnectionResetError:
            data = b""
        if not data:
            return False
        message = json.loads(data)
        if message["op"] == "kill":
            self._kill()
        else:
            self._fork(RankSpec.from_fields(message), descriptors[0])
        return True

    def _fork(self, spec: RankSpec, descriptor: int) -> None:
        assert num_threads() == 1, "the zygote has more than one thread: a fork could copy a held lock"
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_rank(zygote, spec, descriptor)
        os.close(descriptor)
        self._ranks[pid] = spec.world.rank
        self.send(op="forked", rank=spec.world.rank, pid=pid)

    def _become_rank(self, zygote: int, spec: RankSpec, descriptor: int) -> None:
        """In the child; never returns."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            die_with_parent(zygote)
            for inherited in (self._agent.detach(), self._wake, self._waker):
                os.close(inherited)
            code = run_rank(spec, socket.socket(fileno=descriptor), resolve)
        finally:
            os._exit(code)  # without the zygote's exit handlers and the libraries' destructors

    def _kill(self) -> None:
        for pid in self._ranks:
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        while self._ranks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid in self._ranks:
                code = os.waitstatus_to_exitcode(status)
                rank = self._ranks.pop(pid)
                self.send(
                    op="exit", rank=rank, code=max(code, 0) if code >= 0 else None, signal=-code if code < 0 else None
                )

    def send(self, **message: Any) -> None:
        self._agent.send(json.dumps(message).encode())


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    return listener


def _fork_for_caller(listener: socket.socket) -> tuple[socket.socket, bool]:
    """Returns once for each caller, in a new process, with the caller's connection, and whether it is the first."""
    stem = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended: the kernel reaps them
    for number in itertools.count():
        connection, _ = listener.accept()
        assert num_threads() == 1, "the zygote has more than one thread: a fork could copy a held lock"
        if os.fork() == 0:
            die_with_parent(stem)
            listener.close()
            return connection, number == 0
        connection.close()
    raise AssertionError("unreachable")


def main() -> None:
    started = time.monotonic()
    address, preload, model_type, parent = sys.argv[1:]
    die_with_parent(int(parent))
    listener, notes = None if address.isdigit() else _listen(address), list[str]()
    if preload:
        resolve(preload)(model_type, notes.append)
    seconds = time.monotonic() - started
    agent, is_first = _fork_for_caller(listener) if listener else (socket.socket(fileno=int(address)), True)
    zygote = Zygote(agent)
    for note in notes if is_first else ():
        zygote.send(op="note", message=note)
    zygote.send(op="ready", pid=os.getpid(), seconds=seconds if is_first else 0.0)
    zygote.serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        0
    )  # to take all that was imported apart again takes two seconds of a core, which the next agent's ranks need


if __name__ == "__main__":
    main()
