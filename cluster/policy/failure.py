"""Whether to try again after a failure. Pure: the history goes in, a decision with its reason comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zerofleet.cluster.verdict import BadStep, Verdict
from zerofleet.trainer.data.quarantine import Ranges, named, num_positions, union

_PLACES_OF_A_STEP = 2
"""Where one step's state can lie, and be found unusable: the nodes' memory, then storage."""
_ABOUT_A_NODE = ("node", "hang")
"""Classes that say something against a node when they name it twice in a row."""
_OUT_OF_MEMORY = ("device OOM", "host OOM")


@dataclass(frozen=True)
class Terms:
    """What an attempt is begun with, as those before it have taught."""

    quarantine: Ranges = ()
    """Sample positions that are left out."""
    micro_batch_size: int = 0
    """Sequences per rank and micro-step."""
    min_micro_batch_size: int = 0
    """Down to which micro-batches may be halved; 0: they may not."""

    @property
    def halved_size(self) -> int | None:
        """None when the micro-batch has to stay as it is."""
        if not 0 < self.min_micro_batch_size < self.micro_batch_size:
            return None
        return max(self.min_micro_batch_size, self.micro_batch_size // 2)

    def after(self, decision: Decision) -> Terms:
        """Those of the next attempt."""
        size = decision.micro_batch_size or self.micro_batch_size
        return replace(self, quarantine=union(self.quarantine, decision.quarantine), micro_batch_size=size)


TERMS = Terms()
"""Nothing was taught yet, and nothing may be halved."""


@dataclass(frozen=True)
class Failure:
    """One failed attempt. `step` is the newest step that it finished, `checkpoint_step` the newest one committed by then."""

    verdict: Verdict
    step: int
    checkpoint_step: int
    terms: Terms = TERMS

    @property
    def num_left_out(self) -> int:
        """Sample positions."""
        return num_positions(self.terms.quarantine)


@dataclass(frozen=True)
class Decision:
    """What to do, and why in one sentence."""

    action: Literal["retry", "quarantine", "halve", "stop"]
    reason: str
    quarantine: Ranges = ()
    """With `quarantine`: the sample positions that every later attempt leaves out."""
    without: tuple[str, ...] = ()
    """Nodes that the next attempt had better do without, where others can take their place."""
    micro_batch_size: int = 0
    """With `halve`: that of every later attempt."""


def made_progress(failures: Sequence[Failure]) -> bool:
    """Whether the run got further between the failure before and the last one: a newer checkpoint, other samples in its way, a smaller micro-batch,
    or a later step than any before from the same checkpoint. Attempts that all begin at one checkpoint end a little later or earlier by chance."""
    before, last = failures[-2:]
    if last.checkpoint_step > before.checkpoint_step or last.num_left_out > before.num_left_out:
        return True
    if last.terms.micro_batch_size < before.terms.micro_batch_size:
        return True
    return last.step > max(f.step for f in failures[:-1] if f.checkpoint_step == before.checkpoint_step)


def decide(failures: Sequence[Failure], max_failures: int, max_quarantined_steps: int = 0) -> Decision:
    """The decision after the last of `failures`, the run's failed attempts in order."""
    last, verdict = failures[-1], failures[-1].verdict
    if verdict.user_error:
        return Decision("stop", "trying again cannot help: this is for the user to mend")
    if verdict.checkpoint is not None:
        return _without_checkpoint(failures, *verdict.checkpoint)
    counted = [failure for failure in failures if failure.verdict.checkpoint is None]
    before = counted[-2] if len(counted) > 1 else None
    if verdict.bad_step and (first := _first_time(counted, verdict.bad_step)):
        return _after_bad_step(first, verdict.bad_step, last.num_left_out, max_quarantined_steps)
    if verdict.kind in _OUT_OF_MEMORY and verdict.had_state and (size := last.terms.halved_size):
        return _halve(last.terms, size)
    stuck = before is not None and not made_progress(counted)
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
    without = verdict.suspects
    if stuck and before and verdict.node and verdict.kind in _ABOUT_A_NODE and verdict.node == before.verdict.node:
        without = (verdict.node,)
    return Decision("retry", f"failure {in_a_row} of at most {max_failures} without progress", without=without)


def _halve(terms: Terms, size: int) -> Decision:
    """The same attempt again would run out of memory again."""
    reason = (
        f"micro-batches of {terms.micro_batch_size} sequences do not fit; from here on they are of {size}, in as many more micro-steps, and the "
        f"global batch stays as it is (train.min_micro_batch_size={terms.min_micro_batch_size})"
    )
    return Decision("halve", reason, micro_batch_size=size)


def _first_time(failures: Sequence[Failure], bad: BadStep) -> BadStep | None:
    """What the same step gave before of the same samples, unless an attempt has passed it since, or other micro-batches have changed its last bits."""
    for failure in reversed(failures[:-1]):
        if failure.terms.micro_batch_size != failures[-1].terms.micro_batch_size:
            return None
        found = failure.verdict.bad_step
        if found and (found.step, found.ranges) == (bad.step, bad.ranges):
            return found
        if failure.step >= bad.step:
            return None
    return None


def _after_bad_step(first: BadStep, bad: BadStep, num_left_out: int, max_steps: int) -> Decision:
    """The second time: what is bitwise the same comes from the data and the state that it meets; the data can be left out."""
    samples = f"its samples ({named(bad.ranges)})"
    if bad != first:
        return Decision(
            "stop",
            f"step {bad.step} gave {_gave(first)}, then {_gave(bad)}, from the same state: the replay is not bitwise, so nothing says "
            "whether the data is to blame. Set train.deterministic=true on GPUs, look at the hardware, or set "
            "train.loss_spike_threshold=0",
        )
    cause = f"step {bad.step} gave {_gave(bad)} twice from the same state: it is no passing fault"
    num_steps = num_left_out // num_positions(bad.ranges)  # every step takes as many
    if num_steps < max_steps:
        limit = f"{num_steps + 1} of at most cluster.max_quarantined_steps={max_steps} steps"
        reason = f"{cause}; {samples} are left out for the rest of the run ({limit}), and the step takes the next ones"
        return Decision("quarantine", reason, bad.ranges)
    already = f", and the samples of {num_steps} steps are left out already" if num_steps else ""
    return Decision(
        "stop",
        f"{cause}{already} (cluster.max_quarantined_steps={max_steps}). Lower train.learning_rate, look at {samples}, start from an "
        "earlier checkpoint, or raise cluster.max_quarantined_steps",
    )


def _gave(bad: BadStep) -> str:
    return "a non-finite gradient" if bad.loss is None else f"a loss spike of {bad.loss!r}"


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
    while count < len(failures) and not made_progress(failures[: len(failures) - count + 1]):
        count += 1
    return count
