"""The network that joins the hosts of hosts.py: it can cut a host off and make its link slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The project's folder."""
PYTHON_PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
"""So that a host finds the modules that this process has, those of `tests` too."""
NETWORK_DEVICE = "eth0"
"""A host's end of its cable."""


def mac_address(index: int) -> str:
    return f"02:7a:66:00:00:{index:02x}"


class Switch:
    """What the hosts are plugged into: a bridge in a network namespace of its own, one port per host."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"x")
        self._process.stdin.flush()
        assert self._process.stdout.read(1) == b"x", "no namespace for the switch"
        self._links: dict[int, subprocess.Popen[str]] = {}
        """The carriers of slow links by host."""
        self._cut: set[int] = set()
        self._do("ip", "link", "add", "switch", "type", "bridge")
        self._do("ip", "link", "set", "switch", "up")

    def _do(self, *command: str) -> None:
        done = subprocess.run([*self._enter(), *command], capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self._process.pid}", "--net", "--"]

    def plug_in(self, index: int, pid: int) -> None:
        """A cable from a port to the host whose process this is."""
        there = ["peer", "name", NETWORK_DEVICE, "address", mac_address(index), "netns", str(pid)]
        self._do("ip", "link", "add", f"port{index}", "type", "veth", *there)
        self._do("ip", "link", "set", f"port{index}", "master", "switch", "up")

    def open_door(self, address: str) -> list[str]:
        """Gives the switch an address of its own. Returns the command that starts another in its network: a machine that is none of the hosts."""
        self._do("ip", "addr", "add", f"{address}/24", "dev", "switch")
        return self._enter()

    def cut(self, index: int) -> None:
        self._cut.add(index)
        self._do("bridge", "link", "set", "dev", self._port(index), "state", "disabled")

    def heal(self, index: int) -> None:
        self._cut.discard(index)
        self._do("bridge", "link", "set", "dev", self._port(index), "state", "forwarding")

    def _port(self, index: int) -> str:
        return f"far{index}" if index in self._links else f"port{index}"

    def slow(self, index: int, delay_ms: float, rate_mbit: float) -> None:
        """port -- carrier -- near -- far -- switch, in place of port -- switch."""
        self.full_speed(index)
        self._do("ip", "link", "set", f"port{index}", "nomaster")
        self._do("ip", "link", "add", f"near{index}", "type", "veth", "peer", "name", f"far{index}")
        self._do("ip", "link", "set", f"near{index}", "up")
        self._do("ip", "link", "set", f"far{index}", "master", "switch", "up")
        names_and_numbers = [f"port{index}", f"near{index}", str(delay_ms), str(rate_mbit)]
        self._links[index] = carrier = subprocess.Popen(
            [*self._enter(), sys.executable, "-P", "-m", "zerofleet.benchmarks.hosts.slow_link", *names_and_numbers],
            env={**os.environ, "PYTHONPATH": PYTHON_PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert carrier.stdout is not None and carrier.stdout.readline() == "up\n", "the slow link did not come up"
        if index in self._cut:
            self.cut(index)

    def full_speed(self, index: int) -> None:
        if carrier := self._links.pop(index, None):
            carrier.communicate()
            self._do("ip", "link", "del", f"near{index}")
            self._do("ip", "link", "set", f"port{index}", "master", "switch")
            if index in self._cut:
                self.cut(index)

    def close(self) -> None:
        for carrier in self._links.values():
            carrier.communicate()
        self._process.communicate()
