"""The node agent: the one Ray actor of a node. It holds the node's resources, forks the ranks and outlives them.

A plain class: group.py makes it an actor, with several threads, so that a long poll does not block a kill.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from zerofleet.cluster.host import interface_of
from zerofleet.cluster.preflight import NodeReport, inspect_node
from zerofleet.cluster.ranks import Ranks
from zerofleet.cluster.replicator import Replicator
from zerofleet.cluster.results import ResultLog
from zerofleet.cluster.snapshot_hasher import SnapshotHasher
from zerofleet.cluster.snapshot_server import SnapshotServer
from zerofleet.cluster.snapshot_writer import MAPPED_BYTES, SnapshotWriter, remove_snapshots
from zerofleet.cluster.spec import AttemptSpec, NodeSpec, RankSpec, SnapshotInfo
from zerofleet.cluster.stacks import RankStack
from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.checkpoint.remote import Peer, write_holders
from zerofleet.trainer.checkpoint.snapshot import find_snapshots
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.events import DRIVER, RESULTS, Control, Event
from zerofleet.trainer.node_name import node_name
from zerofleet.trainer.run_folder import CheckpointId
from zerofleet.trainer.silos.wire import VARIABLE as OUTER_VARIABLE
from zerofleet.trainer.storage import Storage
from zerofleet.trainer.world import World, free_port


class NodeAgent:
    """Lives as long as the run. Methods are called by the driver."""

    def __init__(self, spec: NodeSpec) -> None:
        self._spec = spec
        self._events: list[Event] = []
        self._arrived = threading.Condition()
        self._num_kills = 0
        self._polled_at = time.monotonic()
        self._told_damaged: set[tuple[Path, str]] = set()
        folder = spec.log_folder or tempfile.mkdtemp(prefix="zerofleet-logs-")
        self._logs = Path(folder)
        self._logs.mkdir(parents=True, exist_ok=True)
        self._snapshots = Path(spec.snapshots) if spec.snapshots else None
        self._mappings = Mappings(MAPPED_BYTES)
        self._hasher = SnapshotHasher(self._mappings)
        self._writer = SnapshotWriter(Storage(spec.storage_url), self._emit, self._mappings, self._hasher)
        self._replicator = Replicator(self._emit, self._mappings)
        self._server = (
            SnapshotServer(self._snapshots, spec.address, spec.secret) if self._snapshots and spec.secret else None
        )
        self._results = ResultLog(self._snapshots, spec.namespace) if self._snapshots else None
        if self._results and (unheard := self._results.recall(self._tell_damaged)):
            self._emit(Event("recalled", 0, DRIVER, 0, "load", time.time(), data={"events": unheard}))
        self._ranks = Ranks(spec, self._logs / f"agent-{spec.node_rank:05d}.log", self._hear)
        threading.Thread(target=self._watch_lease, name="lease", daemon=True).start()

    def inspect(self, cache_path: str) -> NodeReport:
        """Pre-flight: what this node is and what is wrong with it."""
        return replace(inspect_node(self._spec, cache_path), peer=self.peer())

    def free_port(self) -> int:
        """Of this node, for MASTER_PORT."""
        return free_port()

    def start(self, attempt: AttemptSpec) -> None:
        """Forks this node's ranks. They report by events."""
        self._polled_at = time.monotonic()
        logs = self._logs / f"attempt-{attempt.attempt:04d}"
        logs.mkdir(parents=True, exist_ok=True)
        self._replicator.aim(attempt.buddy)
        if self._snapshots:
            write_holders(self._snapshots, attempt.holders)
        self._ranks.start([_rank_spec(attempt, world, logs, self._spec) for world in attempt.worlds])

    def poll(self, timeout_s: float) -> list[Event]:
        """What has happened since the last poll; waits up to `timeout_s` for something."""
        self._polled_at = time.monotonic()
        with self._arrived:
            kills = self._num_kills
            self._arrived.wait_for(lambda: self._events or self._num_kills > kills, timeout_s)
            return self._take()

    def control(self, rank: int, control: Control) -> None:
        self._ranks.control(rank, control)

    def stacks(self, timeout_s: float) -> dict[int, RankStack]:
        """What each of this node's ranks is doing now, by rank; within `timeout_s`."""
        return self._ranks.stacks(timeout_s)

    def kill(self) -> tuple[list[Event], list[int]]:
        """Ends every rank of the attempt. Returns what had not been polled, and the ranks that could not be ended."""
        self._ranks.kill()
        with self._arrived:
            self._num_kills += 1
            self._arrived.notify_all()  # a poll that waits returns, so that no event is still on its way afterwards
            return self._take(), [rank.spec.world.rank for rank in self._ranks.living()]

    def peer(self) -> Peer | None:
        """Where other nodes reach this one's snapshots."""
        return self._server.peer if self._server else None

    def snapshots(self) -> list[SnapshotInfo]:
        """The complete snapshots on this node: those that an earlier agent left here, and a buddy's, included."""
        found = find_snapshots(self._snapshots, self._tell_damaged) if self._snapshots else []
        return [SnapshotInfo(self._spec.node_rank, str(path), meta.brief(), self.peer()) for path, meta in found]

    def persist(self, infos: list[SnapshotInfo]) -> None:
        """Makes snapshots of this node durable: each becomes a `written` or `unwritten` event."""
        for info in infos:
            self._writer.order(info.path, info.meta.rank, info.meta.checkpoint)

    def replicated(self, checkpoint: CheckpointId, is_whole: bool) -> None:
        """Every node's buddy has this step: what is older need not be kept for them. Or some have not: then it need not be."""
        if is_whole:
            self._replicator.release(checkpoint)
        else:
            self._replicator.drop(checkpoint)

    def close(self, keep_snapshots: bool = False) -> None:
        """Ends the ranks and the zygote, and sends logs to where the run folder is."""
        self._ranks.close()
        self._writer.close()
        self._replicator.close()
        self._hasher.close()
        if self._server:
            self._server.close()
        self._mappings.clear()
        if self._snapshots and not keep_snapshots:
            remove_snapshots(self._snapshots)
        if self._spec.log_folder is None and self._upload_logs():
            shutil.rmtree(self._logs)

    def _upload_logs(self) -> bool:
        """Copies the logs to remote storage. False when one could not be: then all stay here."""
        storage = Storage(self._spec.storage_url)
        for log in sorted(self._logs.rglob("*.log")):
            name = f"logs/{log.relative_to(self._logs).with_suffix('')}"
            try:
                if storage.exists(f"{name}.log"):  # an earlier driver's, of an attempt that was never claimed
                    name += f"-{os.urandom(3).hex()}"
                storage.create(f"{name}.log", log.read_bytes())
            except StorageError as error:  # each of the others would wait for storage as long
                self._emit(_incident(f"logs were not uploaded and stay in {self._logs}: {error}"))
                return False
        return True

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _hear(self, event: Event) -> None:
        """What a rank says. A snapshot that is to go somewhere is pinned at once."""
        if self._results and event.kind in RESULTS:
            with contextlib.suppress(OSError):  # no room: it is heard all the same, unless the driver dies
                self._results.append(event)
        self._emit(event)
        if event.kind != "snapshot":
            return
        path, checkpoint = event.data["path"], CheckpointId(**event.data["checkpoint"])
        if event.data["durable"]:
            self._writer.order(path, event.rank, checkpoint)
        elif path:
            self._hasher.order(Path(path), event.rank)
        if event.data["replicate"]:
            self._replicator.order(path, event.rank, checkpoint, event.data["world_size"])

    def _emit(self, event: Event) -> None:
        with self._arrived:
            self._events.append(event)
            self._arrived.notify_all()

    def _tell_damaged(self, path: Path, why: str) -> None:
        """Once of each: the driver asks for snapshots again and again."""
        if (path, why) not in self._told_damaged:
            self._told_damaged.add((path, why))
            self._emit(_incident(f"{path} on {node_name()} is left out: {why}", "memory"))

    def _watch_lease(self) -> None:
        """A driver that no longer polls is gone; its ranks must not train on behind a new driver's back."""
        while True:
            silent_s = time.monotonic() - self._polled_at
            if silent_s > self._spec.lease_s and self._ranks.living():
                self._ranks.kill()
                self._emit(_incident(f"the driver did not poll for {silent_s:.0f} s: the ranks were ended"))
            time.sleep(self._spec.lease_s / 20)


def _rank_spec(attempt: AttemptSpec, world: World, logs: Path, node: NodeSpec) -> RankSpec:
    environment = world.env(attempt.master_addr, attempt.master_port)
    # gloo would take the device that the host's name resolves to, which may be none, or loopback.
    is_alone = world.world_size == len(attempt.worlds)
    device = "lo" if is_alone else interface_of(node.address)
    if device and "GLOO_SOCKET_IFNAME" not in os.environ:
        environment["GLOO_SOCKET_IFNAME"] = device
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]  # a zygote may be older than the agent
    if attempt.job.outer:
        environment[OUTER_VARIABLE] = attempt.job.outer
    log = str(logs / f"{attempt.log_name}-{world.rank:05d}.log")
    return RankSpec(attempt.job, world, environment, log, node.snapshots, len(attempt.worlds))


def _incident(message: str, kind: str = "node") -> Event:
    return Event("incident", 0, DRIVER, 0, "end", time.time(), data={"class": kind, "message": message})
