"""All node agents of a run, as the controller sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from zerofleet.cluster.preflight import NodeFinding
from zerofleet.cluster.spec import JobSpec, SnapshotInfo
from zerofleet.cluster.stacks import RankStack
from zerofleet.trainer.events import Control, Event
from zerofleet.trainer.run_folder import CheckpointId


@dataclass(frozen=True)
class Departure:
    """A node that is about to be taken away."""

    node_id: str
    name: str
    left_s: float
    """Seconds until then; infinite where nobody has said."""

    def __str__(self) -> str:
        return f"node {self.name}" if self.left_s == float("inf") else f"node {self.name} (in {self.left_s:.0f} s)"


@dataclass(frozen=True)
class Placement:
    """How far the group is. Ready when nothing is `missing`; an `error` among the findings keeps it from starting."""

    missing: str = ""
    findings: tuple[NodeFinding, ...] = ()
    num_ready: int = 0
    """While something is missing: the nodes that the run could begin with at once."""

    @property
    def is_ready(self) -> bool:
        return not self.missing


class Group(Protocol):
    """What the controller asks of the nodes. No call blocks longer than its own bound."""

    num_nodes: int
    """How many nodes `place` gets."""

    @property
    def world_size(self) -> int: ...

    @property
    def is_whole(self) -> bool:
        """Whether none of the nodes has been lost since they were placed."""

    def resize(self, num_nodes: int) -> None:
        """From now on another number of nodes. The ranks have ended; node ranks begin at 0 without gaps."""

    def available(self) -> list[str]:
        """Names of the nodes that the run has or could have now."""

    def departing(self) -> list[Departure]:
        """Nodes of the run that are about to be taken away."""

    def release(self, departures: Sequence[Departure]) -> None:
        """Gives these nodes back, those that are still held: `place` gets others. The ranks have ended."""

    def leave_out(self, names: Sequence[str]) -> list[str]:
        """Gives back the nodes of these names that the run has, if others can take the place of all of them: it takes them again only where there
        is no other. The ranks have ended. Returns the names of those that were given back."""

    def place(self, job: JobSpec | None, wait_s: float) -> Placement:
        """Gets the nodes that are missing; idempotent. Without a job (its data is not prepared) it may get them early.

        Raises UserError when the cluster can never hold them.
        """

    def start(
        self, job: JobSpec, attempt: int, num_ranks: int, log_name: str, memory: CheckpointId | None = None
    ) -> None:
        """Forks the first `num_ranks` ranks of an attempt, which starts from the snapshots of `memory` when it is given. A node
        that fails here is lost, and told by `poll`."""

    def poll(self, timeout_s: float) -> list[Event]:
        """What the ranks reported, exits (`exit`) and lost nodes (`node_lost`) included. Waits for the first event."""

    def control(self, control: Control) -> None:
        """Passes a request to rank 0."""

    def kill(self) -> list[Event]:
        """Ends every rank of the attempt. Returns what was still to be heard."""

    def snapshots(self) -> list[SnapshotInfo]:
        """The complete snapshots in the agents' memory."""

    def stacks(self) -> dict[int, RankStack]:
        """What each rank is doing, of the nodes that answer within about a second."""

    def replicated(self, checkpoint: CheckpointId, is_whole: bool) -> None:
        """Tells rank 0 that the next step may be sent to the buddies, and all nodes what need not be kept for them any more: older ones,
        or this one where it is not whole."""

    def persist(self, checkpoint: CheckpointId) -> None:
        """Has the snapshots of a step written to storage; `poll` tells when each is `written` or `unwritten`."""

    def close(self, keep_snapshots: bool = False) -> None:
        """Gives everything back; with `keep_snapshots` they stay in the nodes' memory, for whoever resumes the run."""
