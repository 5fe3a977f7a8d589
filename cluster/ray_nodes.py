"""The nodes of a Ray cluster, as Ray tells of them; and telling it that one will be taken away."""

from __future__ import annotations

import contextlib
import socket
import time

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from zerofleet.cluster.placement import NodeResources
from zerofleet.trainer.errors import ZerofleetError

_GCS_TIMEOUT_S = 10.0


def notices() -> dict[str, float]:
    """The nodes that Ray is draining, by their id: seconds until they are taken away, infinite where it was not told when."""
    deadlines_ms: dict[str, int] = ray._private.state.state.get_draining_nodes()
    now = time.time()
    return {node: (at_ms / 1000 - now if at_ms else float("inf")) for node, at_ms in deadlines_ms.items()}


def cluster_nodes() -> list[NodeResources]:
    """The living nodes that may hold ranks and will stay, with what is free on each."""
    available, leaving = ray._private.state.available_resources_per_node(), notices()
    found = []
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in leaving:
            has, left = node["Resources"], available.get(node["NodeID"], {})
            name = node["NodeManagerHostname"]
            cpus, gpus, *free = (amount.get(kind, 0.0) for amount in (has, left) for kind in ("CPU", "GPU"))
            found.append(NodeResources(node["NodeID"], name, cpus, gpus, free[0], free[1], node["Labels"]))
    return found


def end_agents_of(namespace: str) -> None:
    """Ends the agents of a run that an earlier driver left in the cluster, and frees what they held. This process is the run's
    driver now, and has joined the cluster in the run's namespace."""
    for name in ray.util.list_named_actors():
        with contextlib.suppress(ValueError):  # it ended meanwhile
            ray.kill(ray.get_actor(name))
    for number, entry in placement_group_table().items():
        if entry["name"].startswith(f"{namespace}/node-") and entry["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(number)))


def give_notice(address: str, notice_s: float, why: str) -> None:
    """Tells Ray that the node of this host will be taken away in so many seconds: it puts nothing more there, and whoever looks at `notices`
    leaves. Joins no cluster; a token is taken from Ray's own variables. Raises ZerofleetError when Ray does not know this host, or refuses."""
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    client, host = ray._raylet.GcsClient(address=address), socket.gethostname()
    ours = [
        info.node_id.hex()
        for info in client.get_all_node_info(timeout=_GCS_TIMEOUT_S).values()
        if info.node_manager_hostname == host and info.state == GcsNodeInfo.ALIVE
    ]
    if not ours:
        raise ZerofleetError(f"Ray at {address} knows no living node on host {host}")
    deadline_ms = int((time.time() + notice_s) * 1000)
    for node in ours:
        is_accepted, refusal = client.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, why, deadline_ms)
        if not is_accepted:
            raise ZerofleetError(f"Ray does not drain node {node}: {refusal}")
