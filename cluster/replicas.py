"""Which steps the nodes' buddies have: a reading of `replicated` events. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from zerofleet.trainer.events import Event
from zerofleet.trainer.run_folder import CheckpointId


@dataclass(frozen=True)
class Replicated:
    """What became of a step that was sent to the buddies."""

    checkpoint: CheckpointId
    problem: str
    """Why a buddy has not got it; empty: all have."""
    is_news: bool
    """Whether the step before fared otherwise."""

    def told(self) -> dict[str, str]:
        """What a user should know."""
        step = self.checkpoint.step
        if not self.problem:
            return {"message": f"the nodes' buddies have replicas again: of step {step}"}
        message = f"step {step} has no whole replica on other nodes ({self.problem}): if a node dies, the run goes back further"
        return {"class": "memory", "message": message}


@dataclass
class Replicas:
    """One driver's knowledge, over all attempts."""

    _heard: dict[int, str] = field(default_factory=dict)
    """Of the step that is on its way: rank to its problem."""
    _of: CheckpointId | None = None
    _was_whole: bool = True

    def hear(self, event: Event) -> Replicated | None:
        """What became of a step, once every rank's part of it has been heard of."""
        checkpoint = CheckpointId(**event.data["checkpoint"])
        if self._of != checkpoint:
            if self._of is not None and (checkpoint.attempt, checkpoint.step) < (self._of.attempt, self._of.step):
                return None  # what an attempt before had still to say
            self._of, self._heard = checkpoint, {}
        self._heard[event.rank] = event.data["message"]
        if len(self._heard) < event.data["world_size"]:
            return None
        problem = next((message for message in self._heard.values() if message), "")
        is_news, self._was_whole = self._was_whole == bool(problem), not problem
        return Replicated(checkpoint, problem, is_news)
