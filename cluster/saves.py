"""What a driver knows of its run's saves: which are durable, and why others are not."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from zerofleet.cluster.attempt import Attempt
from zerofleet.cluster.commits import Outcome
from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId

_REMEMBERED = 64
"""Durable saves that are kept in mind, the newest."""


@dataclass
class Saves:
    """A reading of `Outcome`s."""

    _durable: dict[CheckpointId, float] = field(default_factory=dict)
    """What this driver saw become durable and still counts, and the wall time of that."""
    _unkept: dict[CheckpointId, str] = field(default_factory=dict)
    """Saves that did not become durable, and why."""

    _trouble: tuple[int, str] = (0, "")
    """The step of a save that is still tried, and what storage last said against it."""

    @property
    def durable_step(self) -> int:
        """Newest step that this driver saw become durable, and that still counts."""
        return max((checkpoint.step for checkpoint in self._durable), default=0)

    def begin(self, start_step: int, damaged: Collection[CheckpointId]) -> None:
        """An attempt starts from there: what older ones saved of later steps is fenced off from now on. What was found damaged counts no
        more either."""
        self._durable = {c: at for c, at in self._durable.items() if c.step <= start_step and c not in damaged}

    def hear(self, event: Event) -> Event:
        """Takes in what an agent says while it tries. Returns the event, completed by since when nothing is durable."""
        if event.kind != "incident" or event.phase != "save" or event.data.get("class") != "storage":
            return event
        self._trouble = event.step, event.data["message"]
        return replace(event, data={**event.data, "message": f"{event.data['message']}; {self.since()}"})

    def since(self) -> str:
        """Since when nothing has become durable, in words."""
        if not self.durable_step:
            return "nothing has become durable since this driver began"
        at = time.strftime("%H:%M:%S", time.localtime(max(self._durable.values())))
        return f"nothing has become durable since step {self.durable_step} at {at}"

    def too_late(self, limit_s: float) -> str:
        """The reason of a save that had its time."""
        step, message = self._trouble
        why = f" ({message})" if step > self.durable_step else ""
        return f"it was not within cluster.stop_timeout_s={limit_s:g}{why}"

    def settle(self, outcome: Outcome) -> None:
        """Takes in what has come of a save."""
        step = outcome.checkpoint.step
        if not outcome.is_settled:
            self._trouble = step, outcome.message
        elif outcome.is_durable:
            self._unkept.pop(outcome.checkpoint, None)
            self._durable[outcome.checkpoint] = time.time()
            if len(self._durable) > _REMEMBERED:
                del self._durable[next(iter(self._durable))]
        else:
            self._unkept[outcome.checkpoint] = outcome.message

    def ordered_again(self, checkpoint: CheckpointId) -> None:
        """It is tried once more: what went before does not count."""
        self._unkept.pop(checkpoint, None)

    def why_not(self, checkpoint: CheckpointId) -> str:
        """Why a save did not become durable; empty when it did, or still may."""
        return self._unkept.get(checkpoint, "")

    def lost_end(self, attempt: Attempt, now: float, limit_s: float) -> str:
        """Why the last state of an attempt that is done is not durable and will not be; empty while it is, or may become so
        within `limit_s` of the end."""
        if attempt.ordered_step <= attempt.checkpoint_step:
            return ""
        last = attempt.number, attempt.ordered_step
        reasons = [why for checkpoint, why in self._unkept.items() if (checkpoint.attempt, checkpoint.step) == last]
        if attempt.done_at is not None and now - attempt.done_at > limit_s:
            reasons.append(self.too_late(limit_s))
        return f"the state of step {attempt.ordered_step} could not be made durable: {reasons[0]}" if reasons else ""
