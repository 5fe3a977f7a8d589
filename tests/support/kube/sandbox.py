"""`python -m tests.support.kube.sandbox SPEC`: the first process of a pod: namespaces of its own, its mounts, its network, then its container.

Runs under `unshare`. Speaks lines: "ready" when it waits for its cable (a line on stdin), and understands "term". Ends as its container does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from zerofleet.benchmarks.hosts.raylet import HostSpec, _join_network, _mount, _own_folders
from zerofleet.benchmarks.hosts.switch import NETWORK_DEVICE


@dataclass(frozen=True)
class PodSpec:
    """What the kubelet's stand-in tells a pod's first process."""

    name: str
    index: int
    """Its port on the switch."""
    subnet: str
    shared: tuple[str, ...]
    """Folders under /tmp that it sees."""
    mounts: tuple[tuple[str, str], ...]
    """(folder of this machine, path in the pod)."""
    shm_bytes: int
    command: tuple[str, ...]
    environment: dict[str, str]

    @property
    def host(self) -> HostSpec:
        return HostSpec(self.index, self.subnet, 0, self.shared)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> PodSpec:
        fields = json.loads(text)
        return PodSpec(
            **fields
            | {
                "shared": tuple(fields["shared"]),
                "mounts": tuple(map(tuple, fields["mounts"])),
                "command": tuple(fields["command"]),
            }
        )


def main() -> int:
    spec = PodSpec.from_json(sys.argv[1])
    socket.sethostname(spec.name)
    _own_folders(spec.host)
    _mount("-o", f"remount,size={spec.shm_bytes}", "/dev/shm")
    for number, (source, target) in enumerate(spec.mounts):
        _bind(source, Path(target), Path(f"/tmp/layers/{number}"))
    Path("/tmp/hosts").write_text(f"127.0.0.1 localhost\n{spec.host.address} {spec.name}\n")
    _mount("--bind", "/tmp/hosts", "/etc/hosts")  # again: a layer over /etc hides it
    os.write(1, b"ready\n")
    assert sys.stdin.readline(), "the kubelet has gone"
    _join_network(spec.host)
    subprocess.run(
        ["ip", "route", "add", "default", "dev", NETWORK_DEVICE], check=True
    )  # as pods have one: Ray finds its address by it
    container = subprocess.Popen(
        spec.command, env=spec.environment, stdin=subprocess.DEVNULL, stdout=2, stderr=2, start_new_session=True
    )
    threading.Thread(target=_obey, args=(container,), daemon=True).start()
    while True:  # an init reaps whatever ends
        pid, status = os.wait()
        if pid == container.pid:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _bind(source: str, target: Path, layer: Path) -> None:
    """A mount point that this machine does not have is made in a layer over what it has."""
    if not target.exists():
        there = next(parent for parent in target.parents if parent.exists())
        assert str(there) != "/", f"{target}: a mount point directly under / cannot be made"
        for name in ("upper", "work"):
            (layer / name).mkdir(parents=True)
        _mount(
            "-t",
            "overlay",
            "overlay",
            "-o",
            f"lowerdir={there},upperdir={layer}/upper,workdir={layer}/work",
            str(there),
        )
        target.mkdir(parents=True)
    _mount("--bind", source, str(target))


def _obey(container: subprocess.Popen[bytes]) -> None:
    for line in sys.stdin:
        if line.strip() == "term":
            container.send_signal(signal.SIGTERM)
    os.kill(container.pid, signal.SIGKILL)  # the kubelet has gone


if __name__ == "__main__":
    main()
