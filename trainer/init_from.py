"""`run.init_from`: another run's checkpoint as the start of a new run."""

from __future__ import annotations

import logging

from zerofleet.trainer.checkpoint.select import select_checkpoint, verify_checkpoint
from zerofleet.trainer.config import RunConfig
from zerofleet.trainer.errors import CheckpointUnusable, NotFoundError, UserError
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

_log = logging.getLogger(__name__)


def pin_init_from(run: RunFolder, config: RunConfig) -> str | None:
    """What the next attempt's record says under `init_from`: the first attempt decides, so that a source that is still
    training, or a restart before the first checkpoint, changes nothing.

    The first attempt also reads the source's checkpoint once in full: what is pinned is tried again by every attempt, so it
    must not be damaged. Raises what `resolve_init_from` raises.
    """
    if config.init_from is None:
        return None
    if attempts := run.attempts():
        return attempts[0].init_from
    source, checkpoint = resolve_init_from(config.init_from, config.storage, full=True)
    return f"{source.storage.url}@{checkpoint.step}"


def resolve_init_from(text: str, storage: str, full: bool = False) -> tuple[RunFolder, CheckpointId]:
    """`RUN@STEP` or `RUN` (newest step that verifies, with `full` every byte of it); a bare name lies in `storage`.

    Raises NotFoundError, UserError.
    """
    name, at, step_text = text.rpartition("@")
    if not at or "/" in step_text:  # an @ within a URL
        return _newest(text, RunFolder.open(text if "/" in text else f"{storage.rstrip('/')}/{text}"), full)
    run = RunFolder.open(name if "/" in name else f"{storage.rstrip('/')}/{name}")
    if not step_text.isdecimal():
        raise UserError(
            f"run.init_from={text!r}: {step_text!r} is not a step; write RUN@STEP, for example {name}@1000, or {name} alone "
            "for its newest"
        )
    return _of_step(text, run, int(step_text), full)


def _newest(text: str, run: RunFolder, full: bool) -> tuple[RunFolder, CheckpointId]:
    selection = select_checkpoint(run, full=full)
    reasons = [f"step {c.step} (attempt {c.attempt}): {reason}" for c, reason in selection.skipped]
    if selection.checkpoint is None:
        why = f" ({'; '.join(reasons)}): restore its files" if reasons else ""
        raise NotFoundError(f"run.init_from={text!r}: run {run.name!r} has no checkpoint that can be used{why}")
    if reasons:
        _log.warning(
            "run.init_from=%s: step %d is taken; skipped were %s", text, selection.checkpoint.step, "; ".join(reasons)
        )
    return run, selection.checkpoint


def _of_step(text: str, run: RunFolder, step: int, full: bool) -> tuple[RunFolder, CheckpointId]:
    found = run.checkpoints()
    steps = ", ".join(str(other.step) for other in found if other.step != step) or "none"
    matching = [checkpoint for checkpoint in found if checkpoint.step == step]
    if not matching:
        raise NotFoundError(
            f"run.init_from={text!r}: run {run.name!r} has no checkpoint of step {step}; it has {steps}"
        )
    try:
        verify_checkpoint(run, matching[-1], full)
    except CheckpointUnusable as error:
        raise UserError(
            f"run.init_from={text!r}: the {error}. Restore its files, or name another step of run {run.name!r} (others: {steps})"
        ) from error
    return run, matching[-1]
