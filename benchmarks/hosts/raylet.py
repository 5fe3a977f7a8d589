"""`python -m zerofleet.benchmarks.hosts.raylet SPEC`: the first process of a host that benchmarks/hosts/harness.py makes; runs Ray's processes.

It is the init of its own PID namespace, so that whatever runs on the host dies with it, and it dies when its stdin closes.
Speaks JSON lines on stdout: one when the host's folders are its own, one when Ray is up. Between them it waits for a
byte on stdin: the network cable is plugged in.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from zerofleet.benchmarks.hosts.switch import NETWORK_DEVICE, mac_address

GCS_PORT = 6379
JOB_API_PORT = 8265
_AGENT_PORT = 52365
"""Free on a host that has just come into being."""
MOST_HOSTS = 32
_FOLDER = Path("/tmp/ray")
_OBJECT_STORE_BYTES = 80_000_000


@dataclass(frozen=True)
class HostSpec:
    """A host of the network `subnet` (its first three numbers). Host 0 is the head."""

    index: int
    subnet: str
    num_cpus: int
    shared: tuple[str, ...]
    """Folders under /tmp that all hosts see, as they would see a network disk."""
    has_job_api: bool = False
    """Whether the head has a dashboard, and with it Ray's job API."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of its Ray node."""

    @property
    def name(self) -> str:
        return f"host-{self.index}"

    @property
    def address(self) -> str:
        return host_address(self.subnet, self.index)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> HostSpec:
        fields = json.loads(text)
        return HostSpec(**(fields | {"shared": tuple(fields["shared"])}))


def host_address(subnet: str, index: int) -> str:
    return f"{subnet}.{index + 1}"


def main() -> None:
    spec = HostSpec.from_json(sys.argv[1])
    socket.sethostname(spec.name)
    _own_folders(spec)
    _say(pid=os.getpid())
    import ray._private.node  # takes a second: done while the other hosts come up too

    assert ray and os.read(0, 1), "the harness has gone"
    watcher = subprocess.Popen(["cat"], stdout=subprocess.DEVNULL)  # ends with the harness, and then so does the host
    _join_network(spec)
    _say(node_id=_start_ray(spec))
    os.dup2(2, 1)
    while os.wait()[0] != watcher.pid:  # an init reaps whatever ends
        pass


def _own_folders(spec: HostSpec) -> None:
    """/dev/shm, /tmp and /etc/hosts of its own. A shared folder is bound into the new /tmp before that hides the old one."""
    _mount("-t", "tmpfs", "-o", "mode=1777", "host", "/dev/shm")
    new = Path("/dev/shm/new-tmp")
    new.mkdir()
    _mount("-t", "tmpfs", "-o", "mode=1777", "host", str(new))
    for folder in spec.shared:
        inside = new / Path(folder).relative_to("/tmp")
        inside.mkdir(parents=True, exist_ok=True)
        _mount("--bind", folder, str(inside))
    _mount("--move", str(new), "/tmp")
    new.rmdir()
    hosts = Path("/tmp/hosts")
    hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {spec.name}\n")  # as Debian installs it: no address for others
    _mount("--bind", str(hosts), "/etc/hosts")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _join_network(spec: HostSpec) -> None:
    """Addresses on the link are fixed: through a cut, packets vanish, as behind a router; no ARP says "no such host"."""
    lines = [
        "link set lo up",
        f"addr add {spec.address}/24 dev {NETWORK_DEVICE}",
        f"link set {NETWORK_DEVICE} up",
        *(
            f"neigh replace {host_address(spec.subnet, index)} lladdr {mac_address(index)} dev {NETWORK_DEVICE} nud permanent"
            for index in range(MOST_HOSTS)
            if index != spec.index
        ),
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def _start_ray(spec: HostSpec) -> str:
    """The head, or a raylet that joins it. Returns the node's id when the head knows it."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class HostNode(Node):
        """A node without the API server, as zerofleet's own head is, unless it is asked for."""

        def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
            if include_dashboard:
                super().start_api_server(include_dashboard=include_dashboard, raise_on_failure=raise_on_failure)

    is_head = spec.index == 0
    parameters = RayParams(
        node_ip_address=spec.address,
        gcs_address=None if is_head else f"{host_address(spec.subnet, 0)}:{GCS_PORT}",
        gcs_server_port=GCS_PORT if is_head else None,
        num_cpus=spec.num_cpus,
        num_gpus=0,
        labels=dict(spec.labels),
        object_store_memory=_OBJECT_STORE_BYTES,
        temp_dir=str(_FOLDER),
        include_dashboard=is_head and spec.has_job_api,
        dashboard_host=spec.address,
        dashboard_port=JOB_API_PORT,
        include_log_monitor=False,
        no_monitor=True,
        dashboard_agent_listen_port=_AGENT_PORT if spec.has_job_api else 0,
    )
    return str(HostNode(parameters, head=is_head, shutdown_at_exit=False, spawn_reaper=False).node_id)


def _say(**fields: str | int) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
