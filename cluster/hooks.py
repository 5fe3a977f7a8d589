"""What the controller asks of everything but the nodes: data, checkpoints, claims, records, requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from zerofleet.cluster.spec import JobSpec
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId


class Selection(Protocol):
    """What trainer.checkpoint.select gives: the newest usable checkpoint, what was skipped and why, how many there are."""

    @property
    def checkpoint(self) -> CheckpointId | None: ...
    @property
    def skipped(self) -> tuple[tuple[CheckpointId, str], ...]: ...
    @property
    def found(self) -> int: ...


@dataclass(frozen=True)
class Hooks:
    """What the controller asks of the outside."""

    prepare: Callable[[float], JobSpec | None]
    """Waits up to so many seconds for the prepared data; None when it takes longer. Raises what the preparation raised."""
    select: Callable[[frozenset[CheckpointId]], Selection]
    """The checkpoint to start from, the given ones left out."""
    claim: Callable[[int, CheckpointId | None], None]
    """Claims an attempt exclusively. Raises UserError when another driver has it."""
    emit: Callable[[Event], None]
    """Writes an event down."""
    requests: Callable[[], list[str]]
    """What was asked for since the last call: `stop`, `save`, or `end` (a stop that does not wait)."""
