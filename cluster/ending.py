"""The end of a run: a final state is entered when what only the nodes' memory holds is durable, or cannot be any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from zerofleet.cluster.group import Group
from zerofleet.cluster.hooks import Selection
from zerofleet.cluster.saves import Saves
from zerofleet.cluster.spec import SnapshotInfo
from zerofleet.cluster.state import State
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.run_folder import CheckpointId


def newest_in_words(known: int, select: Callable[[], Selection]) -> str:
    """The newest checkpoint of the run: that of step `known`, or, when that is 0, what a look at storage finds."""
    try:
        if not known and (selected := select().checkpoint) is not None:
            known = selected.step
    except StorageError as error:
        return f"whether there is a checkpoint cannot be seen ({error})"
    return f"the newest checkpoint is that of step {known}" if known else "there is no checkpoint yet"


def left_in_memory(
    select: Callable[[list[SnapshotInfo]], Selection], group: Group, durable_step: int
) -> tuple[CheckpointId | None, str]:
    """What a run that ends has in its nodes' memory only: the newest step that is whole there, to be made durable; else, in words, that a part of a
    newer step is kept there, since a node is away that may have the rest. `durable_step`: the newest that is known to be durable. Raises
    StorageError."""
    held = group.snapshots()
    newest, stored = select(held), select([])
    if stored.checkpoint is not None and not stored.in_memory:
        durable_step = max(durable_step, stored.checkpoint.step)
    if newest.checkpoint is not None and newest.in_memory and newest.checkpoint.step > durable_step:
        return newest.checkpoint, ""
    if group.is_whole or all(info.meta.step <= durable_step for info in held):
        return None, ""
    return None, "; the nodes' memory keeps a part of a newer step: resume while they do, when the missing node is back"


@dataclass(frozen=True)
class End:
    """A final state to be entered once `wait_for` is durable, or cannot be any more."""

    state: State
    why: str
    exit_code: int
    wait_for: CheckpointId
    since: float

    def look(self, saves: Saves, now: float, timeout_s: float, newest: Callable[[], str]) -> tuple[End | None, bool]:
        """This end with the full reason, once it can be entered, and whether the state is durable. `newest()`: the
        newest checkpoint, in words, by a look at storage."""
        step = self.wait_for.step
        if saves.durable_step >= step:
            return replace(self, why=f"{self.why}; step {step}, which was in memory, is durable now"), True
        lost = saves.why_not(self.wait_for)
        if not lost and now - self.since <= timeout_s:
            return None, False
        reason = lost or saves.too_late(timeout_s)
        kept = f"step {step} is in the nodes' memory only ({reason}): resume while they keep it"
        return replace(self, why=f"{self.why}; {kept}; {newest()}"), False
