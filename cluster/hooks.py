"""What the controller asks of everything but the nodes: data, checkpoints, claims, records, requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from zerofleet.cluster.commits import Outcome
from zerofleet.cluster.policy.failure import Failure, Terms
from zerofleet.cluster.spec import JobSpec, SnapshotInfo
from zerofleet.cluster.verdict import Verdict
from zerofleet.trainer.errors import ZerofleetError
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId


class Selection(Protocol):
    """What trainer.checkpoint.select gives: the newest usable state, where it is, what was skipped and why, how many there
    are."""

    @property
    def checkpoint(self) -> CheckpointId | None: ...
    @property
    def skipped(self) -> tuple[tuple[CheckpointId, str], ...]: ...
    @property
    def found(self) -> int: ...
    @property
    def in_memory(self) -> bool: ...


def nothing_usable(selection: Selection) -> ZerofleetError:
    """For a run that has checkpoints, none of which can be used: it must not start from scratch silently."""
    told = [f"step {c.step} (attempt {c.attempt}): {reason}" for c, reason in selection.skipped]
    reasons = "; ".join(told) or "their files are gone"
    return ZerofleetError(
        f"none of the run's {selection.found} checkpoints can be used ({reasons}). Restore their files and resume, or submit "
        "the recipe under another run.name to start from scratch"
    )


class Skips:
    """Checkpoints that an attempt could not start from: each is told once for each reason."""

    def __init__(self) -> None:
        self._told: set[tuple[CheckpointId, str]] = set()

    def news(self, skipped: Iterable[tuple[CheckpointId, str]], in_flight: tuple[int, int] | None) -> Iterator[str]:
        """What has not been told yet, in sentences. The save of (attempt, step) `in_flight` is no checkpoint yet; what becomes of
        it is told by whoever commits."""
        for checkpoint, reason in skipped:
            if (checkpoint.attempt, checkpoint.step) != in_flight and (checkpoint, reason) not in self._told:
                self._told.add((checkpoint, reason))
                yield f"the checkpoint of step {checkpoint.step} (attempt {checkpoint.attempt}) was skipped: {reason}"


@dataclass(frozen=True)
class Origin:
    """What an attempt starts from."""

    checkpoint: CheckpointId
    in_memory: bool = False

    def __str__(self) -> str:
        what = "snapshot" if self.in_memory else "checkpoint"
        return f"the {what} of step {self.checkpoint.step} (attempt {self.checkpoint.attempt})"


def origin_of(selection: Selection) -> Origin | None:
    """None for the beginning. Never silently from scratch: ZerofleetError when there are only bad checkpoints."""
    if selection.checkpoint is None and selection.found:
        raise nothing_usable(selection)
    return Origin(selection.checkpoint, selection.in_memory) if selection.checkpoint else None


def unusable_origins(verdict: Verdict, before: Sequence[Failure], start: Origin | None) -> frozenset[Origin]:
    """What no later attempt should start from, after the verdict about an attempt from `start` and the failures `before` it: what was found damaged,
    and snapshots that could not be read from another node twice in a row. A connection that broke once says nothing against them."""
    in_memory = start is not None and start.in_memory
    found = {Origin(CheckpointId(*verdict.checkpoint), in_memory)} if verdict.checkpoint else set()
    if verdict.unreachable and before and before[-1].verdict.unreachable == verdict.unreachable:
        found.add(Origin(CheckpointId(*verdict.unreachable), in_memory=True))
    return frozenset(found)


@dataclass(frozen=True)
class Hooks:
    """What the controller asks of the outside."""

    prepare: Callable[[float], JobSpec | None]
    """Waits up to so many seconds for the prepared data; None when it takes longer. Raises what the preparation raised."""
    select: Callable[[frozenset[Origin], list[SnapshotInfo]], Selection]
    """The state to start from, the given ones left out; the agents hold these snapshots."""
    undisturbed: Callable[[], AbstractContextManager[object]]
    """Meanwhile nothing is committed: what was selected is still the newest when it is claimed. Raises StorageError when a commit does not
    end."""
    claim: Callable[[int, Origin | None, int, Terms], Terms]
    """Claims an attempt exclusively, for so many ranks, on these terms; what the run left out already is left out too: the terms with that are
    returned. Raises UserError when another driver has it."""
    written: Callable[[Event], None]
    """Takes in that a rank's file is in storage, or will not be (`written`, `unwritten`)."""
    outcomes: Callable[[], list[Outcome]]
    """What has come of saves since the last call."""
    emit: Callable[[Event], None]
    """Writes an event down."""
    requests: Callable[[], list[str]]
    """What was asked for since the last call: `stop`, `save`, or `end` (a stop that does not wait)."""
