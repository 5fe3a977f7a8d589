"""`python -m zerofleet.cluster.head`: the process that holds a local Ray; its GCS and raylet are this process's children.

`ray start` does the same, 8 s slower on two cores: it also starts an API server and a client server, on fixed ports,
and replaces 127.0.0.1 by the machine's outer address. This is the only module that uses Ray's private Node class; Ray's
version is pinned exactly. Prints one JSON line when the cluster is up, then reaps what ends until nothing is left.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

from zerofleet.cluster.local import HeadRequest, Leftover
from zerofleet.cluster.zygote_process import spawn_early

NODE_IP = "127.0.0.2"
"""Loopback: nothing outside this machine reaches the cluster. Ray would replace 127.0.0.1 by the outer address."""
_PR_SET_CHILD_SUBREAPER = 36
_VITAL = ("gcs_server", "raylet")


def main() -> None:
    request = HeadRequest.from_json(sys.argv[1])
    Leftover.of_this_process(request).write()  # before there is anything to reap
    # Processes whose parent was killed become this one's children: in a container nobody else may reap them.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if request.zygote is not None:
        spawn_early(request.zygote, request.zygote_path)
    address, vital = _start(request)
    sys.stdout.write(json.dumps({"address": address}) + "\n")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while _reap_one() not in vital:
        pass


def _reap_one() -> int:
    """Waits for a child to end. Returns its pid."""
    return os.wait()[0]


def _start(request: HeadRequest) -> tuple[str, set[int]]:
    """The address, and the processes without which there is no Ray: this one ends with the first of them, so that its driver
    notices."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class HeadNode(Node):
        """A head without the API server: 4 s of CPU time that a run has no use for."""

        def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
            """None is started."""

    parameters = RayParams(
        node_ip_address=NODE_IP,
        num_cpus=request.num_cpus,
        num_gpus=request.num_gpus,
        object_store_memory=request.object_store_bytes,
        temp_dir=str(Path(request.folder)),
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        dashboard_agent_listen_port=0,
    )
    node = HeadNode(parameters, head=True, shutdown_at_exit=False, spawn_reaper=False)
    started = [process for kind in _VITAL for process in node.all_processes[kind]]
    return str(node.gcs_address), {info.process.pid for info in started}


if __name__ == "__main__":
    main()
