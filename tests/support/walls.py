"""A silo behind walls: a user and a network of its own, with one way out, on which every byte is counted. Needs root, which it gives up."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from zerofleet.benchmarks.hosts.switch import PYTHON_PATH, ROOT

_CLONE_NEWNET = 0x40000000
_FIRST_PORT = 7000
"""Below those that the kernel chooses, so that no door has the number of another thing."""
_TOOLS = ("unshare", "nsenter", "setpriv", "ip")
_PYTHON = Path(sys.base_prefix).resolve()
_BUILD = """set -e
mount --make-rprivate /
ip link set lo up
if [ "$2" ]; then
  mount --bind "$1" "$3"
  mount -t tmpfs -o mode=755 python "$2"
  mkdir -p "$1"
  mount --bind "$3" "$1"
fi
echo up
exec cat
"""
"""Arguments: Python's folder; a folder above it that other users cannot enter, if there is one; an empty folder. What the silo sees in that
place is Python, and no more."""
_FOLDERS = ("HOME", "TMPDIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR")
"""Where programs leave what they make: not where whoever runs the tests leaves it."""
_LIBC = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why this machine cannot have walls; empty when it can."""
    if os.geteuid() != 0:
        return "users and networks of silos' own need root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"walls need {', '.join(missing)} (util-linux, iproute2)"
    if closed := [str(path) for path in (Path(sys.prefix), ROOT) if _gate_of(path) is not None]:
        return f"other users cannot enter {', '.join(closed)}"
    probe = ["unshare", "--net", "--mount", "sh", "-c", "mount -t tmpfs none /mnt && ip link set lo up"]
    tried = subprocess.run(probe, capture_output=True, text=True)
    return f"the kernel allows no network of a silo's own: {tried.stderr.strip()}" if tried.returncode else ""


def _gate_of(path: Path) -> Path | None:
    """The outermost folder on the way to it that only its owner may enter."""
    return next(
        (folder for folder in (*reversed(path.resolve().parents), path) if not folder.stat().st_mode & 0o001), None
    )


class Cell:
    """A network with nothing in it but a door to the outer server, and a folder that only `user` can enter."""

    def __init__(self, folder: Path, user: int, server: tuple[str, int]) -> None:
        self.folder, self.user = folder, user
        folder.mkdir(mode=0o700)
        hold = folder / "python"
        hold.mkdir()
        self._keeper = subprocess.Popen(
            [
                "unshare",
                "--net",
                "--mount",
                "sh",
                "-c",
                _BUILD,
                "sh",
                str(_PYTHON),
                str(_gate_of(_PYTHON) or ""),
                str(hold),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None and self._keeper.stdout.readline() == "up\n"
        self.door = Door(self._keeper.pid, _FIRST_PORT + user % 1000, server)

    def hand_over(self) -> None:
        """All that is in the folder becomes the user's, and nobody else's."""
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, self.user, self.user)
            path.chmod(0o700)

    def start(self, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Python with these arguments, as the user, in the network."""
        enter = ["nsenter", f"--target={self._keeper.pid}", "--net", "--mount", "--", "setpriv"]
        drop = [
            f"--reuid={self.user}",
            f"--regid={self.user}",
            "--clear-groups",
            "--bounding-set=-all",
            "--no-new-privs",
        ]
        places = dict.fromkeys(_FOLDERS, str(self.folder))
        return subprocess.Popen(
            [*enter, *drop, sys.executable, *command],
            env={**os.environ, **places, "USER": "silo", "LOGNAME": "silo", "PYTHONPATH": PYTHON_PATH, **environment},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> str:
        """What a short program prints."""
        out, _ = self.start(command).communicate(timeout=100)
        return out.strip()

    def close(self) -> None:
        self.door.close()
        self._keeper.communicate()


class Door:
    """Listens inside a network, and hands everything on to the server outside. A socket belongs to the network in which it was made."""

    def __init__(self, pid: int, port: int, server: tuple[str, int]) -> None:
        self.sent_bytes = 0
        """By all processes inside."""
        self._server, self._lock = server, threading.Lock()
        made: list[socket.socket] = []

        def make() -> None:  # a thread may be in another network than its process
            with open(f"/proc/{pid}/ns/net") as network:
                assert _LIBC.setns(network.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            made.append(socket.create_server(("127.0.0.1", port)))

        maker = threading.Thread(target=make)
        maker.start()
        maker.join()
        (self._listener,) = made
        self.address = "{}:{}".format(*self._listener.getsockname())
        threading.Thread(target=self._open, daemon=True).start()

    def _open(self) -> None:
        while True:
            try:
                inside, _ = self._listener.accept()
            except OSError:  # closed
                return
            outside = socket.create_connection(self._server)
            threading.Thread(target=self._carry, args=(inside, outside, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(outside, inside, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, is_out: bool) -> None:
        while data := source.recv(1 << 16):
            if is_out:
                with self._lock:
                    self.sent_bytes += len(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()
