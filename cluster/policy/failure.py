"""Whether to try again after a failure. Pure: the history goes in, a decision with its reason comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zerofleet.cluster.verdict import Verdict

_PLACES_OF_A_STEP = 2
"""Where one step's state can lie, and be found unusable: the nodes' memory, then storage."""


@dataclass(frozen=True)
class Failure:
    """One failed attempt. `step` is the newest step that it finished, `checkpoint_step` the newest one committed by then."""

    verdict: Verdict
    step: int
    checkpoint_step: int


@dataclass(frozen=True)
class Decision:
    """What to do, and why in one sentence."""

    action: Literal["retry", "stop"]
    reason: str


def made_progress(before: Failure, after: Failure) -> bool:
    """Whether the run got further between two failures: a newer checkpoint, or a later step."""
    return after.checkpoint_step > before.checkpoint_step or after.step > before.step


def decide(failures: Sequence[Failure], max_failures: int) -> Decision:
    """The decision after the last of `failures`, the run's failed attempts in order."""
    last, verdict = failures[-1], failures[-1].verdict
    if verdict.user_error:
        return Decision("stop", "trying again cannot help: this is for the user to mend")
    if verdict.checkpoint is not None:
        return _without_checkpoint(failures, *verdict.checkpoint)
    counted = [failure for failure in failures if failure.verdict.checkpoint is None]
    before = counted[-2] if len(counted) > 1 else None
    if verdict.non_finite_step is not None and before and before.verdict.non_finite_step == verdict.non_finite_step:
        return Decision(
            "stop",
            f"step {verdict.non_finite_step} gave a non-finite gradient twice from the same state: it is no passing fault. "
            "Lower train.learning_rate, look at the data of that step, or start from an earlier checkpoint",
        )
    stuck = before is not None and not made_progress(before, last)
    if stuck and before and verdict.frames and verdict.frames == before.verdict.frames:
        return Decision(
            "stop", f"the same traceback ended two attempts in a row at step {last.step}, without progress between them"
        )
    in_a_row = _failures_without_progress(counted)
    if in_a_row > max_failures:
        return Decision(
            "stop",
            f"{in_a_row} failures in a row without progress at step {last.step}, more than cluster.max_failures={max_failures}",
        )
    return Decision("retry", f"failure {in_a_row} of at most {max_failures} without progress")


def _without_checkpoint(failures: Sequence[Failure], step: int, attempt: int) -> Decision:
    """After an unusable checkpoint: the run goes back to the one before, which is bounded by how many it has."""
    if failures[-1].checkpoint_step != step:
        return Decision(
            "stop",
            "the checkpoint is not this run's own, so there is none before it to go back to. When "
            "run.init_from named it, restore its files and resume, or submit under another run.name with another "
            "run.init_from=RUN@STEP",
        )
    found = sum(failure.verdict.checkpoint == (step, attempt) for failure in failures)
    if found > _PLACES_OF_A_STEP:
        return Decision(
            "stop",
            f"the checkpoint of step {step} (attempt {attempt}) was found unusable {found} times, although it was to be left "
            "out. Restore its files, or move its folder out of the run folder, and resume",
        )
    return Decision("retry", f"the checkpoint of step {step} is left out; this is no failure of the run")


def _failures_without_progress(failures: Sequence[Failure]) -> int:
    """How many failures the run has had since it last got further, the last one included."""
    count = 1
    for before, after in zip(reversed(failures[:-1]), reversed(failures), strict=False):
        if made_progress(before, after):
            break
        count += 1
    return count
