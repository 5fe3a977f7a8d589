"""What the loss of the head, or of all nodes at once, can cost: the steps since the newest checkpoint in storage."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zerofleet.trainer.checkpoint.cadence import PRIOR_MTBF_S, WRITE_SHARE, daly_interval_s
from zerofleet.trainer.config import CheckpointConfig


@dataclass(frozen=True)
class DurableBound:
    """Steps that a head's loss can cost at most; None when only a run can tell. `why` says it in words."""

    steps: int | None
    why: str


def durable_bound(
    checkpoint: CheckpointConfig, total_steps: int, step_s: float | None, write_s: float | None
) -> DurableBound:
    """The interval between durable saves, or the time of a write where that is longer (a save waits for the one before), and the steps that are done
    while one is written: only then it counts. Without `write_s` those are not known, and `steps` is None."""
    writing = math.ceil(write_s / step_s) if step_s and write_s else 0
    meanwhile = f" and {writing} while it is written" if writing else ""
    if checkpoint.interval_steps == "auto":
        if step_s is None or write_s is None:
            return DurableBound(None, "checkpoint.interval_steps=auto follows what saves cost: a run will tell")
        interval_s = daly_interval_s(WRITE_SHARE * write_s, PRIOR_MTBF_S)
        steps = min(total_steps, max(math.ceil(interval_s / step_s), writing) + writing)
        return DurableBound(steps, f"auto, with a failure a day: a checkpoint every {interval_s:.0f} s{meanwhile}")
    steps = checkpoint.interval_steps or total_steps
    if checkpoint.interval_s and step_s:
        steps = min(steps, math.ceil(checkpoint.interval_s / step_s))
    elif checkpoint.interval_s:
        return DurableBound(
            None,
            f"the steps of an interval, a checkpoint every {steps} steps, or {checkpoint.interval_s:g} s if that is sooner, and those done while it "
            "is written",
        )
    if not checkpoint.interval_steps and not checkpoint.interval_s:
        return DurableBound(total_steps, "there is no checkpoint before the end: set checkpoint.interval_steps")
    if write_s is None or step_s is None:
        return DurableBound(
            None, f"the steps of an interval, a checkpoint every {steps} steps, and those done while it is written"
        )
    return DurableBound(min(total_steps, max(steps, writing) + writing), f"a checkpoint every {steps} steps{meanwhile}")
