"""The ranks of one node as its agent sees them: the zygote, a socket to each rank, and one thread that listens to all."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zerofleet.cluster.host import memory_bytes, oom_kills, process_state
from zerofleet.cluster.spec import NodeSpec, RankSpec
from zerofleet.cluster.stacks import RankStack, dump_stacks
from zerofleet.cluster.zygote import MESSAGE_BYTES
from zerofleet.cluster.zygote_process import ZygoteProcess, ZygoteSpec, adopt, spawn
from zerofleet.trainer.events import DRIVER, Control, Event

KILL_TIMEOUT_S = 10.0
"""How long killed ranks may take to be reaped (their memory has to be unmapped) before the zygote is killed too."""
_NEVER_FORKED = {"code": None, "signal": 9}

Emit = Callable[[Event], None]


@dataclass
class Rank:
    """One rank of the current attempt. `connection` is the agent's end of its socket."""

    spec: RankSpec
    connection: socket.socket
    buffer: bytes = b""
    pid: int | None = None
    asked: bool = False
    """Whether the zygote has been asked for it."""
    exited: bool = False
    killed: bool = False
    """Whether this agent ended it: then its exit is no failure."""
    state_before: str = ""
    """The kernel's letter for it when it was killed: T and D tell a frozen rank from those that wait for it."""


class Ranks:
    """Forks, listens to, controls and kills. Every event of a rank, its exit included, goes to `emit`, in order."""

    def __init__(self, spec: NodeSpec, zygote_log: Path, emit: Emit) -> None:
        self._spec, self._zygote_log, self._emit = spec, zygote_log, emit
        self._ranks: dict[int, Rank] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._tasks: list[Callable[[], None]] = []
        self._zygote: ZygoteProcess | None = None
        self._closed = False
        self._oom_kills = 0
        # The zygote is started by this thread: PDEATHSIG follows the thread that forked, so it must live as long as the agent.
        self._thread = threading.Thread(target=self._listen, name="ranks", daemon=True)
        self._thread.start()
        self._run_in_thread(self._start_zygote)

    # -- called by the agent ---------------------------------------------------------------------------------------
    def start(self, specs: list[RankSpec]) -> None:
        """Forks ranks; the ones before must have ended. Returns before the zygote has been asked, which may be busy with its imports;
        what the ranks are told meanwhile waits for them, and a kill follows the fork."""
        assert not self.living(), "ranks of the attempt before are still alive"
        assert all(len(spec.to_json()) < MESSAGE_BYTES for spec in specs), (
            f"a fork request exceeds {MESSAGE_BYTES} bytes"
        )
        with self._lock:
            before, forks = list(self._ranks.values()), []
            self._ranks = {}
            for spec in specs:
                ours, theirs = socket.socketpair()
                rank = self._ranks[spec.world.rank] = Rank(spec, ours)
                forks.append((rank, theirs))
        self._run_in_thread(lambda: self._fork(before, forks))

    def control(self, rank: int, control: Control) -> None:
        """Sends a request to a rank; one that has ended hears nothing."""
        line = json.dumps(asdict(control)).encode() + b"\n"
        with self._lock:
            if (found := self._ranks.get(rank)) and not found.exited:
                with contextlib.suppress(OSError):  # closed by it, or by the listening thread since it has ended
                    found.connection.sendall(line)

    def stacks(self, timeout_s: float) -> dict[int, RankStack]:
        """What each living rank is doing, by rank; within `timeout_s`. Others may call meanwhile: nothing is held."""
        return dump_stacks({rank.spec.world.rank: rank.pid for rank in self.living() if rank.pid}, timeout_s)

    def kill(self) -> None:
        """SIGKILL to every rank. Returns when all are reaped; kills the zygote when that takes too long."""
        with self._lock:
            if not self.living():
                return
            for rank in self.living():
                rank.killed, rank.state_before = True, process_state(rank.pid) if rank.pid else ""
            self._run_in_thread(self._ask_to_kill)
            if self._changed.wait_for(lambda: not self.living(), KILL_TIMEOUT_S):
                return
            if self._zygote is not None:
                self._zygote.kill()  # its children die with it
            self._changed.wait_for(lambda: not self.living(), KILL_TIMEOUT_S)

    def close(self) -> None:
        """Ends the ranks and the zygote."""
        self.kill()
        with self._lock:
            self._closed = True
            zygote = self._zygote
        if zygote is not None:
            zygote.kill()
            zygote.wait()

    def living(self) -> list[Rank]:
        with self._lock:
            return [rank for rank in self._ranks.values() if not rank.exited]

    # -- in the listening thread -----------------------------------------------------------------------------------
    def _run_in_thread(self, task: Callable[[], None]) -> None:
        with self._lock:
            self._tasks.append(task)
        self._waker.send(b"x")

    def _listen(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.data is None:
                        self._wake.recv(4096)
                        self._run_tasks()
                    else:
                        key.data()
        except BaseException:  # noqa: BLE001 - an agent that no longer listens must not look alive: its node is replaced
            traceback.print_exc()
            os._exit(1)

    def _run_tasks(self) -> None:
        with self._lock:
            tasks, self._tasks = self._tasks, []
        for task in tasks:
            task()

    def _start_zygote(self) -> None:
        """A fork of the one that was started early, when there is one; else one of our own."""
        spec = self._spec
        zygote = adopt(spec.early_zygote) if spec.early_zygote else None
        if zygote is not None:
            self._zygote_log = Path(spec.early_zygote).with_suffix(".log")
        else:
            zygote = spawn(ZygoteSpec(spec.preload, spec.model_type, spec.accelerator, str(self._zygote_log)))
        self._zygote = zygote
        self._selector.register(zygote.link, selectors.EVENT_READ, self._hear_zygote)

    def _fork(self, before: list[Rank], forks: list[tuple[Rank, socket.socket]]) -> None:
        """Asks the zygote for each, with the rank's end of its socket."""
        for rank in before:
            self._drop(rank)
        self._oom_kills = oom_kills()
        if self._zygote is None:
            self._start_zygote()
        for rank, theirs in forks:
            rank.asked = True
            self._selector.register(rank.connection, selectors.EVENT_READ, lambda rank=rank: self._hear(rank))
            with theirs:
                self._send_fork(rank.spec, theirs)

    def _send_fork(self, spec: RankSpec, theirs: socket.socket) -> None:
        assert self._zygote is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is noticed by _hear_zygote
            socket.send_fds(self._zygote.link, [spec.to_json().encode()], [theirs.fileno()])

    def _ask_to_kill(self) -> None:
        if self._zygote is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._zygote.link.send(b'{"op": "kill"}')

    def _hear(self, rank: Rank) -> bool:
        """Reads what a rank has said; False when there is nothing. Its end is known from the zygote, not from here."""
        if rank.connection.fileno() < 0:
            return False
        try:
            data = rank.connection.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            self._drop(rank)
            return False
        *lines, rank.buffer = (rank.buffer + data).split(b"\n")
        for line in lines:
            self._emit(Event.from_json(line.decode()))
        return True

    def _drop(self, rank: Rank) -> None:
        if rank.connection.fileno() >= 0:
            self._selector.unregister(rank.connection)
            rank.connection.close()

    def _hear_zygote(self) -> None:
        assert self._zygote is not None
        try:
            data = self._zygote.link.recv(MESSAGE_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            return self._bury_zygote()
        message = json.loads(data)
        match message["op"]:
            case "ready":
                self._zygote = replace(self._zygote, pid=message["pid"])
                self._say("info", message=f"node {self._spec.node_rank}: imports took {message['seconds']:.1f} s")
            case "note":
                self._say("info", message=message["message"])
            case "forked":
                self._ranks[message["rank"]].pid = message["pid"]
            case "exit":
                self._bury(self._ranks[message["rank"]], message)

    def _bury(self, rank: Rank, end: dict[str, Any], **more: Any) -> None:
        """A rank has ended: its last words first, then its exit."""
        while self._hear(rank):
            pass
        self._drop(rank)
        world = rank.spec.world
        data = {
            "code": end["code"],
            "signal": end["signal"],
            "pid": rank.pid,
            "node": world.node_name,
            "killed": rank.killed,
            "state_before": rank.state_before,
            "oom_kills": oom_kills() - self._oom_kills,
            "memory_bytes": memory_bytes(),
            **more,
        }
        self._emit(Event("exit", world.attempt, world.rank, 0, "end", time.time(), data=data))
        with self._lock:
            rank.exited = True
            self._changed.notify_all()

    def _bury_zygote(self) -> None:
        """The zygote has ended, and with it every rank."""
        assert self._zygote is not None
        self._selector.unregister(self._zygote.link)
        self._zygote.link.close()
        code = self._zygote.wait()
        with self._lock:
            self._zygote = None
        if not self._closed:
            tail = "\n".join(self._zygote_log.read_text(errors="replace").splitlines()[-30:])
            for rank in [rank for rank in self.living() if rank.asked]:  # for the others there will be another zygote
                self._bury(rank, _NEVER_FORKED, zygote_code=code, zygote_log=tail)

    def _say(self, kind: str, **data: Any) -> None:
        self._emit(Event(kind, 0, DRIVER, 0, "import", time.time(), data=data))
