"""Several hosts on one machine: a network, process, mount and host-name namespace each, joined by a switch, with a raylet in each.

A host has its own address, name, process numbers, /dev/shm and /tmp (folders named as shared, and all that is not
under /tmp, it shares with the others). Nothing has a name outside: when the process that made the hosts ends, however
it ends, the kernel ends everything in them and removes them, so there is nothing to sweep.
Process numbers that are told from inside a host mean nothing outside: `hosts[1].run(["kill", ...])`, never os.kill.
"""

from __future__ import annotations

import functools
import json
import os
import random
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from zerofleet.benchmarks.hosts.raylet import GCS_PORT, JOB_API_PORT, MOST_HOSTS, HostSpec, host_address
from zerofleet.benchmarks.hosts.switch import NETWORK_DEVICE, PYTHON_PATH, ROOT, Switch

QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""The head asks each raylet every 0.5 s, waits 1 s for the answer, and gives it up after four failures in a row: a killed
host is noticed in 2 s, one that is cut off in 6 s. (Ray's own 3 s, 10 s and five: in 13 s and 63 s.) The price: a cut of
more than 3 s, after which TCP needs as long again, or a raylet that stands still for 6 s, costs the node for good."""
_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
_START_TIMEOUT_S = 60.0
_TOOLS = ("unshare", "nsenter", "ip", "bridge", "mount", "timeout")


@functools.cache
def why_not() -> str:
    """Why this machine cannot have hosts; empty when it can."""
    if os.geteuid() != 0:
        return "hosts are namespaces: they need root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"hosts need {', '.join(missing)} (iproute2, util-linux, coreutils)"
    probe = "mount -t tmpfs probe /dev/shm && ip link add probe0 type veth peer name probe1 && ip link add probe2 type bridge"
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-c", probe], capture_output=True, text=True
    )
    return f"the kernel does not allow what hosts are made of: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """One host. Made by Hosts."""

    def __init__(self, spec: HostSpec, switch: Switch, environment: Mapping[str, str]) -> None:
        self.name, self.address = spec.name, spec.address
        self.device = NETWORK_DEVICE
        self._spec, self._switch, self._environment = spec, switch, environment
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the host
        self._network = -1
        command = [sys.executable, "-P", "-m", "zerofleet.benchmarks.hosts.raylet", spec.to_json()]
        self._outer = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", "--kill-child=KILL", "--mount-proc", *command],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self.pid = 0
        """The host's first process, as seen from outside; 0 before there is one."""
        self.node_id = ""
        """Ray's, once it runs."""

    def plug_in(self) -> None:
        """Waits for the host's first process, gives it its cable, and lets it start Ray."""
        self._hear()
        (first,) = psutil.Process(self._outer.pid).children()
        self.pid = first.pid
        # A killed host goes on to refuse connections, as a machine whose processes were killed does.
        self._network = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        self._switch.plug_in(self._spec.index, first.pid)
        assert self._outer.stdin is not None
        self._outer.stdin.write(b"x")
        self._outer.stdin.flush()

    def wait_for_ray(self) -> None:
        self.node_id = str(self._hear()["node_id"])

    def _hear(self) -> dict[str, str]:
        assert self._outer.stdout is not None
        readable, _, _ = select.select([self._outer.stdout], [], [], _START_TIMEOUT_S)
        line = self._outer.stdout.readline() if readable else b""
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self.name} did not come up in {_START_TIMEOUT_S:g} s:\n{self._log.read()[-3000:]}")
        return dict(json.loads(line))

    # -- what runs on it -------------------------------------------------------------------------------------------
    def run(
        self, command: Sequence[str], timeout_s: float = 60.0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the host. Raises TimeoutExpired; the command is killed then."""
        began = time.monotonic()
        process = self.start(["timeout", "--signal=KILL", f"{timeout_s:g}", *command], environment)
        out, err = process.communicate()
        if process.returncode and time.monotonic() - began >= timeout_s:
            raise subprocess.TimeoutExpired(list(command), timeout_s, out, err)
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, log: IO[str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a command on the host, in the project's folder. Its output goes to pipes, or to `log`.

        It ends with the host, not when the Popen object is killed: that is only the door to the host.
        """
        enter = ["nsenter", f"--target={self.pid}", *_NAMESPACES, "--", "env", f"--chdir={ROOT}"]
        return subprocess.Popen(
            [*enter, *command],
            env={**self._environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log or subprocess.PIPE,
            stderr=log or subprocess.PIPE,
            text=True,
        )

    # -- what happens to it ----------------------------------------------------------------------------------------
    def kill(self) -> None:
        """kill -9 of every process on it; returns when all are gone. Its kernel lives on: connections are closed and
        refused. A host that lost its power is one that was cut off before: they hang."""
        for inner in psutil.Process(self._outer.pid).children() if self._outer.poll() is None else []:
            inner.kill()  # the kernel kills the rest; the outer process waits for all
        self._outer.communicate()

    def close(self) -> None:
        """Kills and removes it."""
        self.kill()
        self._log.close()
        if self._network >= 0:
            os.close(self._network)
            self._network = -1

    def cut(self) -> None:
        """From now on its packets vanish, in both directions. Connections hang."""
        self._switch.cut(self._spec.index)

    def heal(self) -> None:
        self._switch.heal(self._spec.index)

    def slow(self, delay_ms: float, rate_mbit: float) -> None:
        """Each packet to or from it takes `delay_ms` longer, and so many megabits per second pass each way."""
        self._switch.slow(self._spec.index, delay_ms, rate_mbit)

    def full_speed(self) -> None:
        self._switch.full_speed(self._spec.index)


class Hosts:
    """`with Hosts(3) as hosts:` Host 0 holds Ray's head; a driver is to run there, or on any other host."""

    def __init__(
        self,
        count: int,
        num_cpus: int = 2,
        shared: Iterable[Path] = (),
        settings: Mapping[str, str] = QUICK_TO_NOTICE,
        has_job_api: bool = False,
        labels: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """`shared`: folders that all hosts see; those under /tmp have to be named, the project and its Python are.
        `settings`: environment variables of every process on every host. `has_job_api`: at `self.job_api`.
        `labels`: of the Ray nodes of the first hosts, one by one."""
        self._subnet = f"10.{random.randrange(256)}.{random.randrange(256)}"
        self._num_cpus, self._has_job_api = num_cpus, has_job_api
        modules = [Path(folder).absolute() for folder in PYTHON_PATH.split(os.pathsep)]
        installed = [Path(sys.prefix), Path(sys.base_prefix)]
        folders = {str(folder.resolve()) for folder in (*shared, ROOT, *modules, *installed)}
        self._shared = tuple(sorted(folder for folder in folders if folder.startswith("/tmp/")))
        self._environment = _environment(settings)
        self._labels = list(labels)
        self._hosts: list[Host] = []
        self._switch = Switch()
        self.ray_address = f"{host_address(self._subnet, 0)}:{GCS_PORT}"
        self.job_api = f"http://{host_address(self._subnet, 0)}:{JOB_API_PORT}"
        try:
            made = [self._make() for _ in range(count)]
            for host in made:
                host.plug_in()
                if host is made[0]:
                    host.wait_for_ray()
            for host in made[1:]:
                host.wait_for_ray()
        except BaseException:
            self.close()
            raise

    def _make(self) -> Host:
        index = len(self._hosts)
        assert index < MOST_HOSTS, f"at most {MOST_HOSTS} hosts"
        labels = self._labels[index] if index < len(self._labels) else {}
        spec = HostSpec(index, self._subnet, self._num_cpus, self._shared, self._has_job_api, labels)
        self._hosts.append(Host(spec, self._switch, self._environment))
        return self._hosts[-1]

    def add(self) -> Host:
        """One more host joins. Returns when Ray's head knows it."""
        host = self._make()
        host.plug_in()
        host.wait_for_ray()
        return host

    @property
    def token(self) -> str:
        """Ray's, without which nobody joins."""
        return self._environment["RAY_AUTH_TOKEN"]

    def outside(self) -> list[str]:
        """The beginning of a command that runs in this machine's own namespaces, but for the network: a laptop in the hosts' network. To be
        called once."""
        return self._switch.open_door(f"{self._subnet}.200")

    def __getitem__(self, index: int) -> Host:
        return self._hosts[index]

    def __len__(self) -> int:
        return len(self._hosts)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process of every host. May be called twice."""
        for host in self._hosts:
            host.close()
        self._switch.close()


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """What this process has, without its Ray and its temporary folder; a token, so that no foreign Ray can be joined."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != "TMPDIR"}
    return {
        **inherited,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": PYTHON_PATH,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        **settings,
    }
