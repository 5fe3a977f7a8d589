"""When to snapshot and when to make a snapshot durable. Pure: rank 0 asks before a step, and all ranks hear the answer in
the step's collective, so that they always save together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zerofleet.trainer.config import CheckpointConfig
from zerofleet.trainer.events import Action

PRIOR_MTBF_S = 24 * 3600.0
"""Mean time between failures before any was seen: one a day."""
PRIOR_FAILURES = 0.1
"""What that belief weighs, in failures seen: little, so that a run on bad hardware knows it after one or two."""
SNAPSHOT_SHARE = 0.005
"""Of the time, what `auto` spends on snapshots although fewer would lose less on average: a restart then repeats seconds, not
minutes."""
SMOOTHING = 0.1
"""Weight of the newest measurement in the running means."""
WRITE_SHARE = 0.03
"""What a second of background writing costs the ranks, in seconds."""


def daly_interval_s(cost_s: float, mtbf_s: float) -> float:
    """The interval between saves, in seconds of work, that loses least time.

    Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps", equation 37: for a save that
    costs d and failures M apart, sqrt(2 d M) (1 + sqrt(d / 2M) / 3 + d / 18M) - d when d < 2M, else M. Its first term is
    Young's of 1974.
    """
    if cost_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = cost_s / (2 * mtbf_s)
    return math.sqrt(2 * cost_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


@dataclass
class Cadence:
    """What rank 0 knows about time and cost. Times are monotonic seconds."""

    config: CheckpointConfig
    failures: int = 0
    """Of this run so far, and the seconds in which they happened."""
    observed_s: float = 0.0
    durable_at: float = 0.0
    """When the newest durable save was taken."""
    durable_step: int = 0
    snapshot_step: int = 0
    in_flight: int | None = None
    """The step whose save is on its way to storage."""
    has_buddy: bool = False
    """Whether snapshots can be sent to other nodes."""
    has_room: bool = False
    """Whether that leaves two buffers to take turns while a save is on its way to storage too."""
    has_third: bool = True
    """Whether a rank has a third buffer. With two, while a save waits to be written, those ranks whose file is written already would go on and the
    others could not: no step would be whole on the node."""
    replica_in_flight: int | None = None
    """The step that is on its way to the buddies."""
    _step_s: float | None = None
    _stall_s: float | None = None
    _write_s: float | None = None

    def due(self, step: int, now: float) -> Action:
        """What to do after `step`, which ends about `now`. A save waits for the one before to be settled."""
        if self.in_flight is None and self._save_is_due(step, now):
            return "save"
        if not self._snapshot_is_due(step) or (self.in_flight is not None and not self.has_third):
            return "none"
        is_free = self.replica_in_flight is None and (self.in_flight is None or self.has_room)
        return "replicate" if self.has_buddy and is_free else "snapshot"

    def _save_is_due(self, step: int, now: float) -> bool:
        every = self._save_interval_steps()
        # Past due counts too: while a save was in flight its successor's step may have gone by.
        if self.config.interval_steps == "auto":
            # Not multiples: of a number that moves with every measurement there is always one just ahead.
            by_steps = step - self.durable_step >= every
        else:
            by_steps = bool(every) and step // every > self.durable_step // every
        return by_steps or bool(self.config.interval_s and now - self.durable_at >= self.config.interval_s)

    def _snapshot_is_due(self, step: int) -> bool:
        every = self.snapshot_interval_steps()
        return bool(every) and step - self.snapshot_step >= every

    def _save_interval_steps(self) -> int:
        if self.config.interval_steps != "auto":
            return self.config.interval_steps
        return self._auto((self._stall_s or 0.0) + WRITE_SHARE * (self._write_s or 0.0))

    def snapshot_interval_steps(self) -> int:
        """Steps between snapshots, as they are measured now; 0 never."""
        if self.config.snapshot_interval_steps != "auto":
            return self.config.snapshot_interval_steps
        stall_s = self._stall_s or 0.0
        affordable = math.ceil(stall_s / (SNAPSHOT_SHARE * self._step_s)) if self._step_s else 1
        return min(self._auto(stall_s), max(1, affordable))

    def _auto(self, cost_s: float) -> int:
        # The posterior mean's inverse for failures at a constant rate, of which a gamma distribution is believed at first.
        mtbf_s = (self.observed_s + PRIOR_FAILURES * PRIOR_MTBF_S) / (self.failures + PRIOR_FAILURES)
        return max(1, round(daly_interval_s(cost_s, mtbf_s) / self._step_s)) if self._step_s else 1

    # -- what happened -----------------------------------------------------------------------------------------------
    def stepped(self, seconds: float) -> None:
        self._step_s = _mean(self._step_s, seconds)

    def snapshot_started(self, step: int) -> None:
        self.snapshot_step = step

    def stalled(self, seconds: float) -> None:
        """The ranks stood still so long for a snapshot."""
        self._stall_s = _mean(self._stall_s, seconds)

    def save_started(self, step: int, now: float) -> None:
        self.in_flight, self.durable_step, self.durable_at = step, step, now

    def replica_started(self, step: int) -> None:
        if self.has_buddy:
            self.replica_in_flight = step

    def replicated(self, step: int) -> None:
        """The buddies have the state of `step`, or will not get it."""
        if self.replica_in_flight is not None and step >= self.replica_in_flight:
            self.replica_in_flight = None

    def settled(self, step: int, now: float) -> None:
        """The save of `step` is durable, or was given up."""
        if self.in_flight is not None and step >= self.in_flight:
            self.in_flight = None
            self._write_s = _mean(self._write_s, now - self.durable_at)


def _mean(before: float | None, new: float) -> float:
    return new if before is None else (1 - SMOOTHING) * before + SMOOTHING * new
