"""A Ray cluster of our own on this machine, outside the driver's process: started, ended and, after a killed driver, reaped.

Never a foreign one: the address is explicit, RAY_ADDRESS is ignored, and token authentication is on. Every process
of the cluster is in one session, whose id is the head process's, and has in its environment which Ray it belongs to, so that
what is ended is exactly what was started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from zerofleet.cluster.zygote_process import ZygoteSpec
from zerofleet.trainer.errors import StorageError, ZerofleetError
from zerofleet.trainer.process_id import ProcessId, read_stat
from zerofleet.trainer.storage import Storage

_PREFIX = "zf-"
_RECORD = "zerofleet.json"
_LONGEST_TEMP = 20
"""Ray's socket paths (<folder>/session_.../sockets/...) must stay under 107 bytes."""
OBJECT_STORE_BYTES = 80_000_000
"""Nearly Ray's least: nothing large goes through it."""
START_TIMEOUT_S = 60.0
_FOREIGN = ("RAY_ADDRESS", "RAY_JOB_ID", "RAY_NAMESPACE", "RAY_AUTH_TOKEN_PATH")
BELONGS_TO = "ZEROFLEET_LOCAL_RAY"
"""Environment variable of the head, and so of all that it starts: the folder of the local Ray."""
_STOP_TIMEOUT_S = 10.0
_LOG_TAIL_BYTES = 256 * 1024

_log = logging.getLogger(__name__)


class LocalRayError(ZerofleetError):
    """The local Ray did not come up; the message ends with its last lines."""


@dataclass(frozen=True)
class HeadRequest:
    """What the head process is asked to start."""

    folder: str
    run: str
    owner: ProcessId
    num_cpus: int
    num_gpus: int
    zygote: ZygoteSpec | None = None
    """A zygote to start before Ray."""
    object_store_bytes: int = OBJECT_STORE_BYTES

    @property
    def zygote_path(self) -> str:
        """Where that zygote waits for agents."""
        return f"{self.folder}/zygote.sock"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> HeadRequest:
        fields = json.loads(text)
        zygote = ZygoteSpec(**fields["zygote"]) if fields["zygote"] else None
        return HeadRequest(**(fields | {"owner": ProcessId(**fields["owner"]), "zygote": zygote}))


@dataclass(frozen=True)
class Leftover:
    """A local Ray as its record tells of it. `owner` is the driver that started it."""

    folder: Path
    run: str
    owner: ProcessId
    head: ProcessId

    @staticmethod
    def of_this_process(request: HeadRequest) -> Leftover:
        return Leftover(Path(request.folder), request.run, request.owner, ProcessId.own())

    def write(self) -> None:
        """Leaves the record in the folder."""
        (self.folder / _RECORD).write_text(json.dumps(asdict(self) | {"folder": str(self.folder)}))

    @staticmethod
    def read(record: Path) -> Leftover:
        fields = json.loads(record.read_text())
        return Leftover(record.parent, fields["run"], ProcessId(**fields["owner"]), ProcessId(**fields["head"]))

    def processes(self) -> list[psutil.Process]:
        """Its living processes: all of the head's session, or none.

        The kernel gives a session's number to no other process while any member lives. So where a process has the head's
        number, it is the head, or the session is another's. Where none has, one member that says so speaks for all; titles
        that processes give themselves may have overwritten what others could say.
        """
        if not self.head.is_here:
            return []
        members = []
        for pid in psutil.pids():
            with contextlib.suppress(psutil.NoSuchProcess, PermissionError):  # it ended meanwhile, or is another user's
                process = psutil.Process(pid)  # first: what it is told to do later goes to none that comes after it
                stat = read_stat(pid)
                if stat is not None and stat.session == self.head.pid and not stat.is_zombie:
                    members.append(process)
        head = read_stat(self.head.pid)
        is_ours = head.ticks == self.head.ticks if head else any(self._has(member.pid) for member in members)
        return members if is_ours else []

    def _has(self, pid: int) -> bool:
        """Whether the process says that it belongs to this Ray."""
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile, or is another user's
            return False
        return f"{BELONGS_TO}={self.folder}".encode() in variables

    def end(self) -> int:
        """Kills its processes, the head last since it reaps the others, and removes its folder. Returns how many there were."""
        deadline, most = time.monotonic() + _STOP_TIMEOUT_S, 0
        while (left := self.processes()) and time.monotonic() < deadline:
            most = max(most, len(left))
            victims = [process for process in left if process.pid != self.head.pid] or left
            for process in victims:
                with contextlib.suppress(psutil.NoSuchProcess):  # psutil compares create times before it kills
                    process.kill()
            psutil.wait_procs(victims, timeout=0.1)
        if left:
            _log.error("processes %s of the local Ray in %s do not end", [process.pid for process in left], self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        return most


class LocalRay:
    """A running local Ray."""

    def __init__(self, process: subprocess.Popen[bytes], leftover: Leftover, address: str) -> None:
        self._process, self._leftover = process, leftover
        self.address = address
        """host:port of its GCS."""

    @staticmethod
    def start(request: HeadRequest) -> LocalRay:
        """Takes about 3 s; after `own_environment`. Raises LocalRayError."""
        folder = Path(request.folder)
        log = folder / "head.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "zerofleet.cluster.head", request.to_json()],
                env=_head_environment(request.folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=folder,
                start_new_session=True,
            )
        leftover = Leftover(folder, request.run, request.owner, ProcessId.of(process.pid))
        address = _read_address(process)
        if address is None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            leftover.end()
            process.wait()
            raise LocalRayError(f"Ray did not start within {START_TIMEOUT_S:.0f} s. The end of its output:\n{tail}")
        return LocalRay(process, leftover, address)

    def wait(self) -> int:
        """Returns when the head has ended, with its exit code (negative: the signal that killed it)."""
        return self._process.wait()

    def stop(self) -> None:
        """Ends every process and removes the folder. May be called twice."""
        self._leftover.end()
        self._process.wait()

    def save_logs(self, storage: Storage, folder: str) -> None:
        """Copies the ends of Ray's own logs, for the post-mortem. What cannot be read is left out; when storage takes one not,
        it is not asked for the others, each of which may take it a minute."""
        for log in sorted((self._leftover.folder / "session_latest" / "logs").glob("*")):
            try:
                with contextlib.suppress(OSError):
                    if log.is_file() and log.stat().st_size:
                        storage.create(f"{folder}/{log.name}", log.read_bytes()[-_LOG_TAIL_BYTES:])
            except StorageError as error:
                return _log.warning("Ray's logs were not all kept: %s", error)


def new_folder() -> str:
    """A folder for a local Ray, with a path that is short enough for its sockets."""
    return tempfile.mkdtemp(prefix=_PREFIX, dir=_short_temp())


def leftovers() -> list[Leftover]:
    """The local Rays of this user that have a record."""
    found = []
    for record in _short_temp().glob(f"{_PREFIX}*/{_RECORD}"):
        try:
            if record.stat().st_uid == os.getuid():
                found.append(Leftover.read(record))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be read (%s): remove its folder by hand", record, error)
    return found


def reap_leftovers(owner_dead_only: bool = True) -> list[Leftover]:
    """Ends local Rays whose driver is gone (all of this user's with owner_dead_only=False). Returns what was ended."""
    reaped = [leftover for leftover in leftovers() if not (owner_dead_only and leftover.owner.is_alive())]
    for leftover in reaped:
        leftover.end()
    return reaped


def _short_temp() -> Path:
    folder = tempfile.gettempdir()
    return Path(folder if len(folder) <= _LONGEST_TEMP else "/tmp")


def own_environment() -> None:
    """Makes this process one that can only join a Ray of its own. Before Ray is imported: it reads the environment then.

    Authentication by variables, not by Ray's token file: the user's home stays as it is.
    """
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _head_environment(folder: str) -> dict[str, str]:
    assert os.environ.get("RAY_AUTH_MODE") == "token", "own_environment() was not called"
    # Ray's own memory monitor would kill the node agent, which is small; the kernel kills the rank that is large.
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0", BELONGS_TO: folder}
    return {**os.environ, **settings}


def _read_address(process: subprocess.Popen[bytes]) -> str | None:
    assert process.stdout is not None
    with process.stdout as stdout:
        readable, _, _ = select.select([stdout], [], [], START_TIMEOUT_S)
        line = stdout.readline() if readable else b""
    try:
        return str(json.loads(line)["address"])
    except ValueError:
        return None
