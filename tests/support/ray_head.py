"""A Ray cluster of one node, as whoever runs it starts it: `ray start --head` with a token, in a folder and on ports of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from zerofleet.trainer.world import free_port

_NODE_IP = "127.0.0.2"
"""Loopback; Ray would replace 127.0.0.1 by the outer address."""
_START_TIMEOUT_S = 120.0


class RayHead:
    """`with RayHead(folder, python_path) as head:` `python_path` is where the cluster's own modules are."""

    def __init__(self, folder: Path, python_path: str) -> None:
        self.token = secrets.token_hex(32)
        self.token_file = folder / "ray-token"
        self.token_file.write_text(self.token)
        self.token_file.chmod(0o600)
        self._python_path, self._ports = python_path, [free_port() for _ in range(4)]
        self.folders: list[Path] = []
        """Ray's own, one for each start."""
        self._log = folder / "ray-head.log"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._ports[1]}"

    def __enter__(self) -> RayHead:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def start(self) -> None:
        """Returns when the job API answers. After `kill`: the same address and token, and nothing of what was."""
        self.folders.append(Path(tempfile.mkdtemp(prefix="zfr-", dir="/tmp")))
        gcs, dashboard, client, agent = self._ports
        options = {
            "node-ip-address": _NODE_IP,
            "port": gcs,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            "ray-client-server-port": client,
            "dashboard-agent-listen-port": agent,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "temp-dir": self.folders[-1],
            "num-cpus": 2,
            "object-store-memory": 80_000_000,
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in options.items())],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            said = self._log.read_text(errors="replace")[-3000:]
            assert process.poll() is None and time.monotonic() < deadline, f"the head did not come up:\n{said}"
            time.sleep(0.2)

    def _environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return {
            **own,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": self._python_path,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_memory_monitor_refresh_ms": "0",
        }

    def _answers(self) -> bool:
        request = urllib.request.Request(
            f"{self.address}/api/version", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=2):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def kill(self) -> None:
        """kill -9 of every process of the cluster, the jobs' too: those that were started with its token in their environment."""
        deadline = time.monotonic() + 30
        while left := self._processes():
            assert time.monotonic() < deadline, left
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_ours = process.environ().get("RAY_AUTH_TOKEN") == self.token
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found
