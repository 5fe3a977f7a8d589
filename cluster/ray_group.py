"""The group on a Ray cluster. Besides head.py the only module that calls Ray."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from zerofleet.cluster.agent import NodeAgent
from zerofleet.cluster.group import Departure, Placement
from zerofleet.cluster.placement import Ask, NodeResources, check_ever_fits, plan
from zerofleet.cluster.policy.buddies import plan_buddies
from zerofleet.cluster.preflight import NodeReport, compare_nodes
from zerofleet.cluster.ranks import KILL_TIMEOUT_S
from zerofleet.cluster.ray_nodes import cluster_nodes, notices
from zerofleet.cluster.spec import AttemptSpec, JobSpec, NodeSpec, SnapshotInfo, one_per_rank
from zerofleet.cluster.stacks import RankStack
from zerofleet.trainer.checkpoint.remote import Holder, Peer
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.events import DRIVER, Control, Event
from zerofleet.trainer.run_folder import CheckpointId
from zerofleet.trainer.world import World

AGENT_TIMEOUT_S = 10.0
"""How long an agent may take over a call that does no work."""
STACKS_TIMEOUT_S = 0.5
"""How long a node may take to tell what its ranks are doing."""
CONNECT_TIMEOUT_S = 120.0
"""How long joining the cluster may take: the bounds of LocalRay.start and ray.init together."""
_LONG_POLL_S = 5.0
_AGENT_THREADS = 8

_log = logging.getLogger(__name__)


@dataclass
class _Node:
    """One node of the group, from the moment that it is asked for."""

    rank: int
    resources: NodeResources
    address: str
    placement: Any
    agent: Any
    answer: Any
    """Reference to the first answer that is awaited: the agent's name, then its pre-flight report."""
    report: NodeReport | None = None
    poll: Any = None
    born_at: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """As it calls itself, once it has: in a container Ray knows the container's hostname only."""
        return self.report.node if self.report else self.resources.name


class RayGroup:
    """Node agents as detached Ray actors, one per node, each in a placement group of its own."""

    def __init__(
        self,
        connect: Callable[[], None],
        ask: Ask,
        node_spec: NodeSpec,
        *,
        is_ours: bool,
    ) -> None:
        """`connect` joins the cluster and may take seconds: it runs at once, in a thread. `is_ours`: the cluster serves
        this run alone and has a fixed size, so nodes are taken early, and what does not fit never will."""
        self._ask, self._is_ours = ask, is_ours
        self._spec = replaced(node_spec, secret=secrets.token_hex(16) if ask.nodes > 1 else "")
        self.num_nodes = ask.nodes
        self._was_placed = False
        self._nodes: dict[int, _Node] = {}
        self._keepers: dict[str, str] = {}
        """The plan of buddies that is in force, by node id."""
        self._held: list[SnapshotInfo] = []
        """The snapshots that the agents were last found to hold."""
        self._lost: list[Event] = []
        self._announced: set[str] = set()
        """Ids of nodes that were said to be taken away."""
        self._left_out: frozenset[str] = frozenset()
        """Ids of nodes that the run had better do without."""
        self._connected: Future[None] = Future()
        threading.Thread(target=self._connect, args=(connect,), name="ray", daemon=True).start()

    @property
    def world_size(self) -> int:
        return self.num_nodes * self._ask.ranks_per_node

    @property
    def is_whole(self) -> bool:
        return len(self._nodes) == self.num_nodes

    def _connect(self, connect: Callable[[], None]) -> None:
        try:
            connect()
            self._connected.set_result(None)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the future
            self._connected.set_exception(error)

    # -- placement -------------------------------------------------------------------------------------------------
    def place(self, job: JobSpec | None, wait_s: float) -> Placement:
        if job is None and not self._is_ours:
            return Placement("the data is not prepared yet")
        try:
            self._connected.result(0 if job is None else wait_s)
        except TimeoutError:
            return Placement("Ray is starting")
        self._drop_dead()
        wanted = [rank for rank in range(self.num_nodes) if rank not in self._nodes]
        if wanted and (missing := self._take(wanted)).missing:
            if job is not None:
                time.sleep(wait_s)  # the cluster's resources have no event to wait for
            return missing
        if job is None:
            return Placement("the data is not prepared yet")
        return self._inspect(job, wait_s)

    def _drop_dead(self) -> None:
        """An agent that was asked for on a node of whose death Ray did not know yet never comes up, and never fails: Ray would place it
        when the node is back."""
        if waiting := [node for node in self._nodes.values() if node.report is None]:
            alive = {node.node_id for node in cluster_nodes()}
            for node in waiting:
                if node.resources.node_id not in alive:
                    self._forget(node)

    def _take(self, wanted: list[int]) -> Placement:
        """Asks for agents on all the nodes that are wanted, or on none: no gang waits half-placed. Says what is missing."""
        nodes = cluster_nodes()
        if self._is_ours and not nodes:
            raise ZerofleetError("the run's own Ray has lost its last node: `zerofleet resume` starts another")
        if self._is_ours and not self._was_placed:
            check_ever_fits(self._ask, nodes)
        taken = frozenset(node.resources.node_id for node in self._nodes.values())
        ask = replaced(self._ask, nodes=len(wanted))
        found = plan(ask, nodes, taken | self._left_out)
        if found.missing and self._left_out:
            self._left_out, found = frozenset(), plan(ask, nodes, taken)
        if found.missing:
            return Placement(found.missing, num_ready=len(self._nodes) + len(found.nodes))
        for rank, resources in zip(wanted, found.nodes, strict=True):
            self._nodes[rank] = self._create(rank, resources)
        self._was_placed = True
        return Placement()

    def resize(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        # Who is silent goes first.
        nodes = sorted(self._nodes.values(), key=lambda node: (node.report is None, node.rank))
        for node in nodes[num_nodes:]:
            self._forget(node)
        for rank, node in enumerate(nodes[:num_nodes]):
            node.rank = rank
        self._nodes = {node.rank: node for node in nodes[:num_nodes]}

    def available(self) -> list[str]:
        held = {node.resources.node_id for node in self._nodes.values()}
        return [n.name for n in cluster_nodes() if n.node_id in held or self._ask.fits_free(n)]

    def departing(self) -> list[Departure]:
        leaving = self._leaving()
        return [
            Departure(node_id, node.name, leaving[node_id])
            for node in self._nodes.values()
            if (node_id := node.resources.node_id) in leaving
        ]

    def _leaving(self) -> dict[str, float]:
        """Seconds that nodes of the cluster have left, by id. Remembers who they were: Ray forgets a notice with its node."""
        leaving = {} if self._is_ours else notices()
        self._announced |= leaving.keys()
        return leaving

    def release(self, departures: Sequence[Departure]) -> None:
        leaving = {departure.node_id for departure in departures}
        for node in [node for node in self._nodes.values() if node.resources.node_id in leaving]:
            self._forget(node)

    def leave_out(self, names: Sequence[str]) -> list[str]:
        leaving = [node for node in self._nodes.values() if node.name in names]
        taken = self._left_out | {node.resources.node_id for node in self._nodes.values()}
        if not leaving or plan(replaced(self._ask, nodes=len(leaving)), cluster_nodes(), taken).missing:
            return []
        for node in leaving:
            self._left_out |= {node.resources.node_id}
            self._forget(node)
        return [node.name for node in leaving]

    def _create(self, rank: int, resources: NodeResources) -> _Node:
        bundle = {"CPU": self._ask.cpus} | ({"GPU": self._ask.gpus} if self._ask.gpus else {})
        group = placement_group(
            [bundle],
            name=f"{self._spec.namespace}/node-{rank:05d}/{time.time_ns()}",
            lifetime="detached",
            bundle_label_selector=[{**self._ask.labels, "ray.io/node-id": resources.node_id}],
        )
        address = next(n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == resources.node_id)
        agent = (
            ray.remote(NodeAgent)
            .options(
                name=f"agent-{rank:05d}-{time.time_ns()}",
                lifetime="detached",
                max_concurrency=_AGENT_THREADS,
                num_cpus=self._ask.cpus,
                num_gpus=self._ask.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
            )
            .remote(replaced(self._spec, node_rank=rank, address=address))
        )
        return _Node(rank, resources, address, group, agent, answer=None)

    def _inspect(self, job: JobSpec, wait_s: float) -> Placement:
        waiting = {}
        for node in self._nodes.values():
            if node.report is None:
                node.answer = node.answer or node.agent.inspect.remote(job.cache_path)
                waiting[node.answer] = node
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=wait_s) if waiting else ([], [])
        for answer in done:
            node = waiting[answer]
            try:
                node.report = ray.get(answer)
            except RayError as error:
                _log.warning("the agent of node %s did not come up: %s", node.resources.name, error)
                self._forget(node)
        absent = [n.resources.name for n in self._nodes.values() if n.report is None]
        if absent or len(self._nodes) < self.num_nodes:
            missing = f"{len(absent)} node agent(s) have not come up: {', '.join(absent[:8])}"
            return Placement(missing, num_ready=len(self._nodes) - len(absent))
        reports = [self._nodes[rank].report for rank in range(self.num_nodes)]
        return Placement(findings=tuple(compare_nodes([report for report in reports if report])))

    # -- the ranks of an attempt -----------------------------------------------------------------------------------
    def start(
        self, job: JobSpec, attempt: int, num_ranks: int, log_name: str, memory: CheckpointId | None = None
    ) -> None:
        if not self.is_whole:
            missing = min(set(range(self.num_nodes)) - set(self._nodes))
            data = {
                "node": f"node {missing}",
                "node_rank": missing,
                "message": "it was gone before its ranks were started",
            }
            self._lost.append(Event("node_lost", 0, DRIVER, 0, "end", time.time(), data=data))
            return
        address = self._nodes[0].address if self.num_nodes > 1 else "127.0.0.1"
        try:
            port = ray.get(self._nodes[0].agent.free_port.remote(), timeout=AGENT_TIMEOUT_S)
        except (RayError, GetTimeoutError) as error:
            self._lost.append(self._lose(self._nodes[0], str(error)))
            return
        holders, buddies, calls = _holders(self._held, memory), self._buddies(), {}
        for node in self._nodes.values():
            worlds = self._worlds(node, attempt, num_ranks)
            spec = AttemptSpec(job, attempt, worlds, log_name, address, port, holders, buddies.get(node.rank))
            calls[node.rank] = node.agent.start.remote(spec)
        self._settle(calls, AGENT_TIMEOUT_S)

    def _buddies(self) -> dict[int, Peer]:
        """By node rank, who keeps a copy of its snapshots."""
        by_id = {node.resources.node_id: node for _, node in sorted(self._nodes.items())}
        self._keepers = plan_buddies(dict.fromkeys(by_id), self._keepers).keepers
        pairs = ((by_id[owner].rank, by_id[keeper].report) for owner, keeper in self._keepers.items())
        return {rank: report.peer for rank, report in pairs if report and report.peer}

    def _settle(self, calls: dict[int, Any], timeout_s: float) -> dict[int, Any]:
        """The answers by node rank. A node that fails or does not answer in time is given up."""
        answers, deadline = {}, time.monotonic() + timeout_s
        for rank, call in calls.items():
            try:
                answers[rank] = ray.get(call, timeout=max(0.0, deadline - time.monotonic()))
            except (RayError, GetTimeoutError) as error:
                self._lost.append(self._lose(self._nodes[rank], str(error)))
        return answers

    def _worlds(self, node: _Node, attempt: int, num_ranks: int) -> tuple[World, ...]:
        assert node.report is not None
        first, name = node.rank * self._ask.ranks_per_node, node.report.node
        return tuple(
            World(rank, rank - first, node.rank, num_ranks, name, attempt)
            for rank in range(first, min(first + self._ask.ranks_per_node, num_ranks))
        )

    def poll(self, timeout_s: float) -> list[Event]:
        for node in self._nodes.values():
            node.poll = node.poll or node.agent.poll.remote(_LONG_POLL_S)
        waiting = {node.poll: node for node in self._nodes.values()}
        events, self._lost = self._lost, []
        if not waiting:
            time.sleep(timeout_s)  # nobody is left who could say anything
            return events
        first, rest = ray.wait(list(waiting), num_returns=1, timeout=timeout_s)
        more = ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else []
        for reference in [*first, *more]:
            events += self._hear(waiting[reference])
        return events

    def _hear(self, node: _Node) -> list[Event]:
        reference, node.poll = node.poll, None
        try:
            events: list[Event] = ray.get(reference, timeout=AGENT_TIMEOUT_S)
        except (RayError, GetTimeoutError) as error:
            return [self._lose(node, str(error))]
        return events

    def control(self, control: Control) -> None:
        if node := self._nodes.get(0):
            node.agent.control.remote(0, control)

    def kill(self) -> list[Event]:
        """An agent that does not answer is given up: its lease, or its node's end, ends its ranks."""
        calls = {node.rank: node.agent.kill.remote() for node in self._nodes.values()}
        events: list[Event] = []
        for rank, (unheard, left) in self._settle(calls, 2 * KILL_TIMEOUT_S + AGENT_TIMEOUT_S).items():
            node = self._nodes[rank]
            if node.poll is not None:
                events += self._hear(node)  # what a poll had taken came before what was left
            events += unheard
            if left and rank in self._nodes:
                self._lost.append(self._lose(node, f"ranks {left} do not end on SIGKILL"))
        lost, self._lost = self._lost, []
        return events + lost

    def stacks(self) -> dict[int, RankStack]:
        calls = [node.agent.stacks.remote(STACKS_TIMEOUT_S) for node in self._nodes.values()]
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=2 * STACKS_TIMEOUT_S) if calls else ([], [])
        found: dict[int, RankStack] = {}
        for call in done:
            with contextlib.suppress(RayError):  # whether its node is lost is asked elsewhere
                found |= ray.get(call)
        return found

    # -- snapshots -------------------------------------------------------------------------------------------------
    def snapshots(self) -> list[SnapshotInfo]:
        calls = {node.rank: node.agent.snapshots.remote() for node in self._nodes.values()}
        answers = self._settle(calls, AGENT_TIMEOUT_S)
        self._held = [replaced(info, node_rank=rank) for rank, infos in answers.items() for info in infos]
        return self._held

    def replicated(self, checkpoint: CheckpointId, is_whole: bool) -> None:
        self.control(Control(replicated_step=checkpoint.step))
        for node in self._nodes.values():
            node.agent.replicated.remote(checkpoint, is_whole)

    def persist(self, checkpoint: CheckpointId) -> None:
        chosen = one_per_rank(self.snapshots(), checkpoint)
        for node in self._nodes.values():
            if mine := [info for info in chosen if info.node_rank == node.rank]:
                node.agent.persist.remote(mine)

    # -- loss and end ----------------------------------------------------------------------------------------------
    def _lose(self, node: _Node, reason: str) -> Event:
        self._leaving()
        self._forget(node)
        data = {
            "node": node.name,
            "host": node.resources.name,
            "node_rank": node.rank,
            "announced": node.resources.node_id in self._announced,
            "message": reason.strip().splitlines()[0].rstrip("."),
        }
        return Event("node_lost", 0, DRIVER, 0, "end", time.time(), data=data)

    def _forget(self, node: _Node) -> None:
        del self._nodes[node.rank]
        ray.kill(node.agent)
        remove_placement_group(node.placement)

    def close(self, keep_snapshots: bool = False) -> None:
        wait([self._connected], CONNECT_TIMEOUT_S)  # a cluster that is half up must be ended, not left
        if not self._connected.done() or self._connected.exception() is not None:
            return
        calls = [node.agent.close.remote(keep_snapshots) for node in self._nodes.values()]
        ray.wait(calls, num_returns=len(calls), timeout=KILL_TIMEOUT_S + AGENT_TIMEOUT_S) if calls else None
        for node in list(self._nodes.values()):
            self._forget(node)
        ray.shutdown()


def _holders(held: Sequence[SnapshotInfo], memory: CheckpointId | None) -> tuple[Holder, ...]:
    chosen = one_per_rank(held, memory) if memory else []
    return tuple(Holder(info.meta.rank, info.peer, info.path) for info in chosen if info.peer)
