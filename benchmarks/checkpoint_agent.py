"""What a node agent and the driver do for a save, in a process of its own: the snapshot writer and the committer of cluster/."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from zerofleet.benchmarks.rank_group import Group, requests
from zerofleet.cluster.commits import Committer
from zerofleet.cluster.snapshot_hasher import SnapshotHasher
from zerofleet.cluster.snapshot_writer import MAPPED_BYTES, SnapshotWriter, remove_snapshots, snapshot_folder
from zerofleet.trainer.checkpoint.commit import commit
from zerofleet.trainer.checkpoint.format import Manifest
from zerofleet.trainer.checkpoint.mappings import Mappings
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.events import Event
from zerofleet.trainer.loop import nothing_to_do
from zerofleet.trainer.run_folder import CheckpointId, RunFolder


class SaveFailed(RuntimeError):
    """A save did not become durable."""


def snapshots_of(config: TrainConfig) -> Path:
    """Where the group's snapshots lie."""
    assert config.run.name is not None
    return Path(snapshot_folder(RunFolder(config.run.storage, config.run.name)))


def serve_saves(config: TrainConfig, connections: list[Connection]) -> None:
    """A helper for ranks: each request is the event of a snapshot; every rank is told the step when it is durable, or why it
    is not."""
    assert config.run.name is not None
    run = RunFolder(config.run.storage, config.run.name)

    def tell(answer: int | str) -> None:
        for connection in connections:
            connection.send(answer)

    def commit_and_tell(manifest: Manifest) -> None:
        try:
            commit(config.checkpoint, run, manifest, nothing_to_do)
        except Exception as error:
            tell(f"{type(error).__name__}: {error}")
            raise
        tell(manifest.step)

    def hear(event: Event) -> None:
        if event.kind == "written":
            committer.hear(event)
        else:
            tell(event.data["message"])

    committer = Committer(commit_and_tell)
    mappings = Mappings(MAPPED_BYTES)
    hasher = SnapshotHasher(mappings)
    writer = SnapshotWriter(run.storage, hear, mappings, hasher)
    try:
        for _, event in requests(connections):
            path, checkpoint = event.data["path"], CheckpointId(**event.data["checkpoint"])
            writer.order(path, event.rank, checkpoint)
    finally:
        writer.close()
        committer.close()
        hasher.close()
        remove_snapshots(snapshots_of(config))


class AgentLine:
    """A rank's side of it."""

    def __init__(self, group: Group) -> None:
        self._connection = group.helper

    def report(self, event: Event) -> None:
        """What the saver has to say: of it the agent needs to know the durable snapshots."""
        if event.kind == "snapshot" and event.data["durable"]:
            self._connection.send(event)

    def has_answer(self) -> bool:
        """Whether `wait` would return at once."""
        return self._connection.poll()

    def wait(self, step: int) -> None:
        """Returns when `step` is durable. Raises SaveFailed with the reason when it will not be."""
        answer = self._connection.recv()
        if answer != step:
            raise SaveFailed(f"step {step} did not become durable: {answer}")
